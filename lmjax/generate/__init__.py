"""Sampling from a model with an explicit key-value cache."""
