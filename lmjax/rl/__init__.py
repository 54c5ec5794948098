"""Reinforcement learning from rewards: sampling, scoring and updates, as pure functions of arrays and parameters."""
