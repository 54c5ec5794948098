"""Rows of T tokens from token shards, in one of two ways. Only this module shifts targets.

"split": the documents are concatenated and cut every T tokens. Row k predicts tokens kT + 1 .. kT + T from those before
them, so every token but the very first is predicted once per epoch. The rest at the end is dropped in training
(`dropped_tokens` counts it) and padded in validation. With `isolate_documents`, segments are numbered from 1 in each
row, positions restart at each document, and the first token of a document is no target.

"first_fit": documents are packed into rows by first-fit decreasing (Johnson et al. 1974), each its own segment; a
document longer than a row is cut into pieces that overlap by one token, the last target of a piece and the first input
of the next. The rest of a row is padding: token 0, segment 0, weight 0.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.data.first_fit import Plan, plan_rows
from lmjax.data.token_shards import TokenShards
from lmjax.errors import UserError
from lmjax.settings import DataSettings


class Rows(Protocol):
    """The rows of one source, each once per epoch."""

    dropped_tokens: int  # targets in no row

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R], as the fields of data/batch.py, [R, T]. Arrays may be read-only.

        `epochs`, int64 [R], counts how often each row was read before: what is drawn for a row, such as a mask, is a
        function of both. None stands for 0, as in validation.
        """
        ...


def pack(shards: TokenShards, settings: DataSettings, *, keep_rest: bool) -> Rows:
    """The rows of a source. `keep_rest`: pad the last partial row instead of dropping it.

    Raises UserError where the source is shorter than one row.
    """
    length = settings.sequence_length
    if shards.tokens <= length:
        raise UserError(
            f"{shards.name}: {shards.tokens} tokens are shorter than one row of data.sequence_length = {length} and "
            "its last target; give more text, or lower data.sequence_length"
        )
    if settings.packing == "first_fit":
        return FirstFitRows(shards, length)
    if settings.isolate_documents:
        return IsolatedRows(shards, length, keep_rest)
    return SplitRows(shards, length, keep_rest)


class SplitRows:
    """Rows of concatenated documents that attend to each other."""

    def __init__(self, shards: TokenShards, length: int, keep_rest: bool) -> None:
        self.shards, self.length = shards, length
        self._targets = shards.tokens - 1
        full, rest = divmod(self._targets, length)
        self._rows = full + (keep_rest and rest > 0)
        self.dropped_tokens = 0 if keep_rest else rest
        self._constants: dict[int, Batch] = {}

    def __len__(self) -> int:
        return self._rows

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]."""
        starts_R = indices * self.length
        window_RT = self.shards.windows(starts_R, self.length + 1)
        batch = {TOKENS: window_RT[:, :-1].copy(), TARGETS: window_RT[:, 1:].copy()}
        batch |= self._structure(starts_R)
        valid_R = self._targets - starts_R
        if (valid_R < self.length).any():
            padding_RT = np.arange(self.length) >= valid_R[:, None]
            batch = {name: np.where(padding_RT, array.dtype.type(0), array) for name, array in batch.items()}
        return batch

    def _structure(self, starts_R: np.ndarray) -> Batch:
        """Weights, positions and segments, which all full rows share."""
        shape = (len(starts_R), self.length)
        if shape[0] not in self._constants:
            constants = {
                WEIGHTS: np.ones(shape, np.float32),
                POSITIONS: np.tile(np.arange(self.length, dtype=np.int32), (shape[0], 1)),
                SEGMENTS: np.ones(shape, np.int32),
            }
            for array in constants.values():
                array.flags.writeable = False
            self._constants[shape[0]] = constants
        return self._constants[shape[0]]


class IsolatedRows(SplitRows):
    """Rows of concatenated documents whose attention, positions and targets stop at document ends."""

    def _structure(self, starts_R: np.ndarray) -> Batch:
        rows, begins = self.shards.starts_between(starts_R, starts_R + self.length)
        columns = begins - starts_R[rows]  # from 1 to T
        is_first_RT = np.zeros((len(starts_R), self.length + 1), bool)
        is_first_RT[rows, columns] = True
        inside = columns < self.length
        places = len(starts_R) * self.length
        edges = np.concatenate([np.arange(0, places, self.length), (rows * self.length + columns)[inside], [places]])
        edges.sort()
        positions = np.arange(places) - np.repeat(edges[:-1], np.diff(edges))
        return {
            WEIGHTS: (~is_first_RT[:, 1:]).astype(np.float32),
            POSITIONS: positions.astype(np.int32).reshape(-1, self.length),
            SEGMENTS: np.cumsum(is_first_RT[:, :-1], axis=1, dtype=np.int32) + np.int32(1),
        }


class Tokens(Protocol):
    """A stream of documents, such as token shards."""

    def document_bounds(self) -> np.ndarray:
        """The first position of each document, and the end of the last one, int64 [documents + 1]."""
        ...

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at these positions, int64 [n]."""
        ...


class FirstFitRows:
    """Rows of whole documents by a plan, by default that of first-fit packing."""

    dropped_tokens = 0

    def __init__(self, shards: Tokens, length: int, plan: Plan | None = None) -> None:
        self.shards, self.length = shards, length
        self.plan = plan_rows(shards.document_bounds(), length) if plan is None else plan

    def __len__(self) -> int:
        return len(self.plan.first_piece) - 1

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]."""
        plan, rows = self.plan, len(indices)
        counts_R = plan.first_piece[indices + 1] - plan.first_piece[indices]
        before_R = np.cumsum(counts_R) - counts_R  # pieces of the rows before
        row = np.repeat(np.arange(rows), counts_R)
        within = np.arange(len(row)) - before_R[row]
        pieces = plan.first_piece[indices][row] + within
        lengths = plan.lengths[pieces].astype(np.int64)
        ends = np.cumsum(lengths)
        row_begins = np.concatenate([[0], ends])[before_R]
        places = row * self.length + ends - lengths - row_begins[row]  # of the first token of each piece

        order = np.argsort(plan.starts[pieces])  # shards are read in order
        pieces, lengths, places, within = (array[order] for array in (pieces, lengths, places, within))
        shift = np.arange(ends[-1] if len(ends) else 0)
        before = np.cumsum(lengths) - lengths
        positions = shift - np.repeat(before, lengths)
        source = np.repeat(plan.starts[pieces] - before, lengths) + shift
        places = np.repeat(places - before, lengths) + shift

        def laid_out(values: np.ndarray | float, dtype: type) -> np.ndarray:
            flat: np.ndarray = np.zeros(rows * self.length, dtype)
            flat[places] = np.asarray(values, dtype)  # three times as fast as a conversion during the assignment
            return flat.reshape(rows, self.length)

        return {
            TOKENS: laid_out(self.shards.take(source), np.int32),
            TARGETS: laid_out(self.shards.take(source + 1), np.int32),
            WEIGHTS: laid_out(self._weights(source + 1), np.float32),
            POSITIONS: laid_out(positions, np.int32),
            SEGMENTS: laid_out(np.repeat(within + 1, lengths), np.int32),
        }

    def _weights(self, targets: np.ndarray) -> np.ndarray | float:
        """The weights in the loss of the targets at these positions."""
        return 1.0
