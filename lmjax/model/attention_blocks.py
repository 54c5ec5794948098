"""Sizes of splash attention's blocks, apart from its kernel: the import of Pallas takes a third of a second."""

from __future__ import annotations

BLOCK = 1024  # queries and keys per grid step, if the sequence is as long: the largest tiles that fit VMEM
COMPUTE_BLOCK = 512  # keys per inner product


def largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `length`, itself a multiple of 128."""
    return max(size for size in range(128, min(length, most) + 1, 128) if length % size == 0)


def has_fused_backward(keys: int, most: int | None) -> bool:
    """Whether one kernel makes all gradients of a row of `keys`, whose blocks have at most `most`; None means BLOCK.

    It makes scores and their gradient once, but writes a part of the queries' gradient for every block of keys, which
    XLA then adds up. Where there is one block there is nothing to add; where there are two, adding takes longer than
    what is saved (`experiments/benchmarks/attention_kernels.py`).
    """
    return keys <= (most or BLOCK)
