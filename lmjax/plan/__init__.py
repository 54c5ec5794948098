"""Ahead-of-time compilation for slices that are not attached, and what the compiler says of them."""
