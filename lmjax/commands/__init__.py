"""The commands, one module for those of a kind. Each has `add`, which declares what it parses."""
