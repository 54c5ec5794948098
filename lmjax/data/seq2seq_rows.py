"""Rows of an encoder-decoder: several examples in a row, each with one segment number for its inputs and its targets.

In: for each example the tokens of its inputs and of its targets. Out: the encoder's fields, [R, S], and the decoder's,
[R, T], which reads each target behind the one before it, and a start token before the first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.data.batch import (
    INPUT_POSITIONS,
    INPUT_SEGMENTS,
    INPUTS,
    POSITIONS,
    SEGMENTS,
    TARGETS,
    TOKENS,
    WEIGHTS,
    Batch,
    BatchSpec,
    Field,
)
from lmjax.data.token_strings import TokenStrings, within

START = 0  # what a decoder reads before its first target: T5's padding token (Raffel et al. 2020)
_OPEN_ROWS = 1024  # rows that are looked at for room; those with the least room are closed


class RowPlan(NamedTuple):
    """Row r holds the examples order[first[r] : first[r + 1]]."""

    first: np.ndarray  # int64 [rows + 1]
    order: np.ndarray  # int64 [examples]

    def examples(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the examples in these rows, and how many each row has, int64."""
        counts = self.first[rows + 1] - self.first[rows]
        return self.order[np.repeat(self.first[rows], counts) + within(counts)], counts


def plan_examples(sizes: np.ndarray, room: tuple[int, int]) -> RowPlan:
    """First-fit decreasing by both lengths: int64 [examples, 2] of inputs and targets into rows with this room.

    Every size is at most the room. The longest example, relative to the room, is placed first.
    """
    order = np.argsort(-(sizes / np.array(room)).max(axis=1), kind="stable")
    left = np.zeros((0, 2), np.int64)
    names, rows, row_of = np.zeros(0, np.int64), 0, np.empty(len(sizes), np.int64)
    for example, size in zip(order.tolist(), sizes[order], strict=True):
        fitting = (left >= size).all(axis=1)
        place = int(fitting.argmax()) if len(left) else 0
        if not len(left) or not fitting[place]:
            if len(left) == _OPEN_ROWS:
                closed = int(left.min(axis=1).argmin())
                left, names = np.delete(left, closed, axis=0), np.delete(names, closed)
            left, names, place = np.vstack([left, room]), np.append(names, rows), len(left)
            rows += 1
        left[place] -= size
        row_of[example] = names[place]
    first = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return RowPlan(first, np.argsort(row_of, kind="stable"))


def laid_out(inputs: TokenStrings, targets: TokenStrings, counts: np.ndarray, shape: tuple[int, int]) -> Batch:
    """The rows of examples, `counts` of them in each row; `shape` is (S, T)."""
    S, T = shape
    segments = within(counts) + 1
    places, input_positions = _places(inputs.sizes, counts, S)
    input_segments = np.repeat(segments, inputs.sizes)
    rows = len(counts)
    decoder, positions = _places(targets.sizes, counts, T)
    read = np.concatenate([[START], targets.ids[:-1]]) if len(targets.ids) else targets.ids
    read = np.where(positions == 0, START, read)
    weights = np.ones(len(decoder))
    return {
        INPUTS: _filled(places, inputs.ids, rows, S),
        INPUT_POSITIONS: _filled(places, input_positions, rows, S),
        INPUT_SEGMENTS: _filled(places, input_segments, rows, S),
        TOKENS: _filled(decoder, read, rows, T),
        TARGETS: _filled(decoder, targets.ids, rows, T),
        WEIGHTS: _filled(decoder, weights, rows, T).astype(np.float32),
        POSITIONS: _filled(decoder, positions, rows, T),
        SEGMENTS: _filled(decoder, np.repeat(segments, targets.sizes), rows, T),
    }


def seq2seq_fields(rows: int, shape: tuple[int, int]) -> BatchSpec:
    """The fields of a batch of such rows; `shape` is (S, T)."""
    inputs = {name: Field((rows, shape[0])) for name in (INPUTS, INPUT_POSITIONS, INPUT_SEGMENTS)}
    outputs = {name: Field((rows, shape[1])) for name in (TOKENS, TARGETS, POSITIONS, SEGMENTS)}
    return inputs | outputs | {WEIGHTS: Field((rows, shape[1]), "float32")}


def _places(lengths: np.ndarray, counts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each token in the rows, which are `width` long and one after the other, and its position."""
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(lengths) - lengths
    row_begins = np.concatenate([[0], np.cumsum(lengths)])[np.cumsum(counts) - counts]
    offsets = row * width + before - row_begins[row]
    positions = within(lengths)
    return np.repeat(offsets, lengths) + positions, positions


def _filled(places: np.ndarray, values: np.ndarray, rows: int, width: int) -> np.ndarray:
    flat = np.zeros(rows * width, np.int32)
    flat[places] = values
    return flat.reshape(rows, width)


class ExampleRows:
    """Rows of examples that are in memory, packed; every example is in one row."""

    dropped_tokens = 0

    def __init__(self, inputs: TokenStrings, targets: TokenStrings, shape: tuple[int, int]) -> None:
        self._inputs, self._targets, self._shape = inputs, targets, shape
        self.plan = plan_examples(np.stack([inputs.sizes, targets.sizes], axis=1), shape)

    def __len__(self) -> int:
        return len(self.plan.first) - 1

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]."""
        examples, counts = self.plan.examples(indices)
        return laid_out(self._inputs.taken(examples), self._targets.taken(examples), counts, self._shape)
