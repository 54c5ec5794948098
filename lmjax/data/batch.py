"""The fields of a batch, defined here once.

A batch is a dict of arrays with B rows of T tokens. Targets are already shifted: no other module shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # a NumPy array on the host, a jax.Array on devices

Batch = dict[str, Array]

TOKENS = "tokens"  # [B, T] int32: what the model reads; 0 where there is padding
TARGETS = "targets"  # [B, T] int32: the token after each one
WEIGHTS = "weights"  # [B, T] float32: the weight of each target in the loss; 0 means none
POSITIONS = "positions"  # [B, T] int32: counted from 0 in each segment
SEGMENTS = "segments"  # [B, T] int32: attention stays inside a segment; 0 is padding

TYPES = "token_types"  # [B, T] int32: the part of the input, such as the first or the second sentence, from 0
PREDICTED = "predicted"  # [B, P] int32: the columns whose tokens a masked language model predicts
PREDICTED_TARGETS = "predicted_targets"  # [B, P] int32: what stood there
PREDICTED_WEIGHTS = "predicted_weights"  # [B, P] float32: 0 where a row has fewer
LABELS = "labels"  # [B], of each row: a class, int32, or a score, float32; or [B, T], of each token a class
LABEL_WEIGHTS = "label_weights"  # [B] float32: 0 for rows that fill a batch up
SPANS = "spans"  # [B, 2] int32: the columns of an answer's first and last token; those of [CLS] for none
INPUTS = "inputs"  # [B, S] int32: what the encoder of an encoder-decoder reads; its decoder reads `tokens`
INPUT_POSITIONS = "input_positions"  # [B, S] int32
INPUT_SEGMENTS = "input_segments"  # [B, S] int32: a segment of the decoder attends to that of its number

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


def one_segment(real: np.ndarray) -> Batch:
    """Positions and segments, int32 [..., T], of rows of one segment from column 0 on; `real`, bool, is no padding."""
    positions = np.where(real, np.arange(real.shape[-1]), 0).astype(np.int32)
    return {POSITIONS: positions, SEGMENTS: real.astype(np.int32)}
