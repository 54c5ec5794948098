"""Objectives: what a step minimises, as (sum, weight) pairs."""
