"""Optimizers and learning-rate schedules, built from a recipe's settings."""
