"""Checkpoints of a stage, and what they are verified and told apart by."""
