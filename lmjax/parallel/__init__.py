"""Meshes, the table from logical to mesh axes, shardings, and many processes."""
