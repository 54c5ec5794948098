"""Sizes of splash attention's blocks, apart from its kernel: the import of Pallas takes a third of a second."""

from __future__ import annotations

BLOCK = 1024  # queries and keys per grid step, if the sequence is as long: the largest tiles that fit VMEM
COMPUTE_BLOCK = 512  # keys per inner product


def largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `length`, itself a multiple of 128."""
    return max(size for size in range(128, min(length, most) + 1, 128) if length % size == 0)
