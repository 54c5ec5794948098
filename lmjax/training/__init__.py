"""The step, the one loop, checkpoints and records."""
