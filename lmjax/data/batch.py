"""The fields of a batch, defined here once.

A batch is a dict of arrays with B rows of T tokens. Targets are already shifted: no other module shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # a NumPy array on the host, a jax.Array on devices

Batch = dict[str, Array]

TOKENS = "tokens"  # [B, T] int32: what the model reads; 0 where there is padding
TARGETS = "targets"  # [B, T] int32: the token after each one
WEIGHTS = "weights"  # [B, T] float32: the weight of each target in the loss; 0 means none
POSITIONS = "positions"  # [B, T] int32: counted from 0 in each segment
SEGMENTS = "segments"  # [B, T] int32: attention stays inside a segment; 0 is padding

LANGUAGE_FIELDS = (TOKENS, TARGETS, WEIGHTS, POSITIONS, SEGMENTS)

# What a step that is compiled without data takes for the fields above.
FIELD_DTYPES = {TOKENS: "int32", TARGETS: "int32", WEIGHTS: "float32", POSITIONS: "int32", SEGMENTS: "int32"}


@dataclass(frozen=True)
class Field:
    """The shape of a field of a batch, its dtype, and the logical axes along which a mesh cuts it, the first ones."""

    shape: tuple[int, ...]
    dtype: str = "int32"
    axes: tuple[str, ...] = ("batch",)


BatchSpec = dict[str, Field]


def language_fields(shape: tuple[int, ...], axes: tuple[str, ...] = ("batch",)) -> BatchSpec:
    """The fields above, all of one shape."""
    return {name: Field(shape, dtype, axes) for name, dtype in FIELD_DTYPES.items()}
