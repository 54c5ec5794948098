"""Stages: thin functions that choose data, model, objective and optimizer and hand them to the one loop."""
