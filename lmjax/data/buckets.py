"""Rows of several lengths in buckets: a batch has the columns of its bucket, and few shapes are compiled.

A step's bucket and its rows are a pure function of the settings, the rows' lengths and the step. In an epoch every row
is read once: each bucket's rows in a seeded order, cut into batches of which the last is filled up with padding, and
the batches of all buckets in a seeded order of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from lmjax.data.batch import Batch, BatchSpec
from lmjax.data.loader import interleaved
from lmjax.data.packing import Rows
from lmjax.data.permutation import Shuffle
from lmjax.errors import require
from lmjax.settings import DataSettings


class RaggedLengths(Rows, Protocol):
    """Rows that say how long each is."""

    @property
    def lengths(self) -> np.ndarray:
        """The real tokens of each row, int32 [R]; they stand at its beginning."""
        ...


class Buckets:
    """Which rows are in which bucket: that of the least length which holds the row.

    edges: the columns of each bucket, of which the last is the rows' full length. Empty buckets have no batch.
    """

    def __init__(self, lengths: np.ndarray, edges: Sequence[int], full: int, batch_size: int) -> None:
        self.edges = np.array(sorted({edge for edge in edges if edge < full} | {full}), np.int64)
        bucket_R = np.searchsorted(self.edges, np.minimum(lengths, full))
        self.rows = [np.flatnonzero(bucket_R == bucket) for bucket in range(len(self.edges))]
        self.batches = np.array([math.ceil(len(rows) / batch_size) for rows in self.rows], np.int64)
        self._first = np.cumsum(self.batches) - self.batches

    def place(self, number: int) -> tuple[int, int]:
        """The bucket of a batch of an epoch, whose batches are numbered bucket after bucket, and its number there."""
        bucket = int(np.searchsorted(self._first + self.batches, number, side="right"))
        return bucket, number - int(self._first[bucket])


class BucketLoader:
    """The training batches of rows in buckets; see `lmjax.data.loader.RowLoader` for the methods.

    Several sources are read as one. The shape of a batch follows from its bucket alone.
    """

    def __init__(
        self, sources: Sequence[RaggedLengths], settings: DataSettings, edges: Sequence[int], fields: BatchSpec
    ) -> None:
        """Raises UserError where the sizes of batches changed between two runs, which buckets do not follow."""
        changed = [earlier[0] for earlier in settings.earlier_batches]
        expected, fix = "none in buckets", "restore batch_size and sequence_length, or choose another --workdir"
        require(not changed, "rows.earlier_batches", changed, expected, fix)
        self.settings, self._fields = settings, fields
        self._sources = list(sources)
        self.rows_per_epoch = [len(rows) for rows in self._sources]
        self.dropped_tokens = [rows.dropped_tokens for rows in self._sources]
        self._source_of = np.repeat(np.arange(len(self._sources)), self.rows_per_epoch)
        self._index_of = np.concatenate([np.arange(count) for count in self.rows_per_epoch])
        lengths_R = np.concatenate([rows.lengths for rows in self._sources])
        size, full = settings.batch_size, settings.sequence_length
        self.buckets = Buckets(lengths_R, edges, full, size)
        self._order = Shuffle([len(rows) for rows in self.buckets.rows], settings.seed)
        self._turns = Shuffle([self.batches_per_epoch], settings.seed + 1)
        columns = (self.buckets.edges * self.buckets.batches).sum() * size
        self.padding = 1.0 - float(np.minimum(lengths_R, full).sum()) / float(columns)

    @property
    def batches_per_epoch(self) -> int:
        return int(self.buckets.batches.sum())

    def batch_at(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, or those of its rows that `rows` selects; rows behind the bucket's last are padding."""
        size = self.settings.batch_size
        bucket, number = self._bucket_at(step)
        numbers = np.arange(number * size, (number + 1) * size)[rows or slice(None)]
        own = self.buckets.rows[bucket]
        here = np.flatnonzero(numbers < len(own))
        epochs = np.full(len(here), step // self.batches_per_epoch, np.int64)
        chosen = numbers[here]
        if self.settings.shuffle:
            chosen = self._order.images(np.full(len(here), bucket), epochs, chosen)
        return self._read(own[chosen], epochs, here, len(numbers), int(self.buckets.edges[bucket]))

    def _read(self, rows: np.ndarray, epochs: np.ndarray, here: np.ndarray, size: int, columns: int) -> Batch:
        sources = self._source_of[rows]
        parts = []
        for source in np.unique(sources) if len(rows) else [0]:  # no row says what the fields are like, too
            own = np.flatnonzero(sources == source)
            part = self._sources[source].batch(self._index_of[rows[own]], epochs[own])
            parts.append((here[own], cut_columns(part, self._fields, columns)))
        return interleaved(parts, size)

    def _bucket_at(self, step: int) -> tuple[int, int]:
        epoch, turn = divmod(step, self.batches_per_epoch)
        if self.settings.shuffle:
            zero = np.zeros(1, np.int64)
            turn = int(self._turns.images(zero, zero + epoch, zero + turn)[0])
        return self.buckets.place(turn)

    def length_at(self, step: int) -> int:
        """The columns of the batch of a step."""
        return int(self.buckets.edges[self._bucket_at(step)[0]])

    def batch_size_at(self, step: int) -> int:
        return self.settings.batch_size

    def tokens_at(self, step: int) -> int:
        """Columns x rows of all steps before this one, padding included."""
        epochs, rest = divmod(step, self.batches_per_epoch)
        whole = int((self.buckets.edges * self.buckets.batches).sum())
        first = epochs * self.batches_per_epoch
        return self.settings.batch_size * (epochs * whole + sum(self.length_at(first + turn) for turn in range(rest)))

    def epochs_at(self, step: int) -> list[float]:
        return [step / self.batches_per_epoch] * len(self._sources)

    def described(self) -> str:
        """The buckets in words."""
        used = [f"{edge}" for edge, count in zip(self.buckets.edges, self.buckets.batches, strict=True) if count]
        return f"rows in buckets of {', '.join(used)} tokens: {self.padding:.1%} of them are padding"


def evaluation_batches(
    rows: RaggedLengths, edges: Sequence[int], full: int, batch_size: int, fields: BatchSpec
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every row once, in buckets: the numbers of the rows, int64 [n], and a batch whose first n rows they are."""
    buckets = Buckets(rows.lengths, edges, full, batch_size)
    for edge, own in zip(buckets.edges, buckets.rows, strict=True):
        for first in range(0, len(own), batch_size):
            numbers = own[first : first + batch_size]
            part = cut_columns(rows.batch(numbers), fields, int(edge))
            yield numbers, interleaved([(np.arange(len(numbers)), part)], batch_size)


def cut_columns(batch: Batch, fields: BatchSpec, columns: int) -> Batch:
    """The first columns of the fields of tokens, those whose last axis is that of `tokens`."""
    full = fields["tokens"].shape[-1]
    return {
        name: array[..., :columns] if len(fields[name].shape) > 1 and fields[name].shape[-1] == full else array
        for name, array in batch.items()
    }
