"""Batches as a pure function of the settings and the step.

In: token shards and mixture weights. Out: `batch_at(step)`, the batch or the rows of one process. There is no iterator
state: resuming, another number of processes and reading a past batch are the same call.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.mixture import Mixture
from lmjax.data.packing import Rows, pack
from lmjax.data.permutation import Shuffle
from lmjax.data.ramp import BatchRamp
from lmjax.data.source_shares import mixture_weights
from lmjax.data.token_shards import TokenShards
from lmjax.errors import UserError
from lmjax.settings import DataSettings


class RowLoader:
    """The training batches of a mixture of sources of `Rows`. Without weights, sources count by their rows.

    rows_per_epoch, dropped_tokens: per source, the rows of one epoch, and the tokens at its end that are in no row.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float | None], settings: DataSettings) -> None:
        if len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights")
        self.settings = settings
        self._sources = list(sources)
        self._ramp = BatchRamp(settings)
        self.rows_per_epoch = [len(rows) for rows in self._sources]
        self._mixture = Mixture(mixture_weights(weights, self.rows_per_epoch))
        self._sizes = np.array(self.rows_per_epoch, np.int64)
        self._shuffle = Shuffle(self.rows_per_epoch, settings.seed) if settings.shuffle else None
        self.dropped_tokens = [rows.dropped_tokens for rows in self._sources]

    def batch_at(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, [B, T] per field of data/batch.py, or those of its rows that `rows` selects.

        O(1) in the step, and independent of earlier calls. Arrays may be read-only and shared between calls.
        """
        before, size = self._ramp.rows_at(step), self._ramp.batch_size_at(step)
        first, last, stride = (rows or slice(None)).indices(size)
        numbers = np.arange(before + first, before + last, stride, dtype=np.int64)
        if not len(numbers):
            raise ValueError(f"rows {rows} select none of the {size} rows of step {step}")
        sources, ordinals = self._mixture.assign(numbers)
        epochs, indices = np.divmod(ordinals, self._sizes[sources])
        if self._shuffle is not None:
            indices = self._shuffle.images(sources, epochs, indices)
        if len(self._sources) == 1:
            return self._sources[0].batch(indices, epochs)
        places = [np.flatnonzero(sources == source) for source in range(len(self._sources))]
        read = [
            rows.batch(indices[here], epochs[here]) if len(here) else {}
            for rows, here in zip(self._sources, places, strict=True)
        ]
        parts = [(here, part) for here, part in zip(places, read, strict=True) if len(here)]
        return interleaved(parts, len(numbers))

    def batch_size_at(self, step: int) -> int:
        """Rows of the whole batch of this step."""
        return self._ramp.batch_size_at(step)

    def length_at(self, step: int) -> int:
        """The columns of the batch of this step."""
        return self.settings.sequence_length

    def tokens_at(self, step: int) -> int:
        """Tokens (rows x columns) of all steps before this one."""
        return self._ramp.tokens_at(step)

    def epochs_at(self, step: int) -> list[float]:
        """The epochs of each source that all steps before this one read."""
        counts = self._mixture.counts(self._ramp.rows_at(step))
        return [count / rows for count, rows in zip(counts, self.rows_per_epoch, strict=True)]


class Loader(RowLoader):
    """The training batches of token shards, packed as the settings say."""

    def __init__(self, shards: Sequence[TokenShards], weights: Sequence[float | None], settings: DataSettings) -> None:
        """Raises UserError where a source is shorter than one row, or the sources differ in tokenizer."""
        check_one_tokenizer(shards)
        super().__init__([pack(source, settings, keep_rest=False) for source in shards], weights, settings)


class ValidationBatches:
    """A fixed validation set: every row once, source after source. Rows of weight 0 fill the last batch of each."""

    def __init__(self, sources: Sequence[Rows], length: int, batch_size: int) -> None:
        self.batch_size, self.length = batch_size, length
        self._sources = list(sources)
        counts = [math.ceil(len(rows) / batch_size) for rows in self._sources]
        self._first_batches = np.cumsum([0, *counts]).tolist()

    def __len__(self) -> int:
        return self._first_batches[-1]

    def __getitem__(self, index: int) -> Batch:
        return self.batch_at(index)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch_at, range(len(self)))

    def dealt(self, most: int | None) -> list[range]:
        """The batches of each source that an evaluation of `most` batches reads: see `dealt`."""
        firsts = self._first_batches
        counts = dealt([last - first for first, last in pairwise(firsts)], most)
        return [range(first, first + count) for first, count in zip(firsts, counts, strict=False)]

    def batch_size_at(self, index: int) -> int:
        """Rows of a batch, with those that fill it up."""
        return self.batch_size

    def batch_at(self, index: int, rows: slice | None = None) -> Batch:
        """Batch `index`, or those of its rows that `rows` selects, [rows, T] per field."""
        if not 0 <= index < len(self):
            raise IndexError(f"validation batch {index} of {len(self)}")
        source = bisect_right(self._first_batches, index) - 1
        first = (index - self._first_batches[source]) * self.batch_size
        numbers = np.arange(first, first + self.batch_size, dtype=np.int64)[rows or slice(None)]
        where = np.flatnonzero(numbers < len(self._sources[source]))
        return interleaved([(where, self._sources[source].batch(numbers[where]))], len(numbers))


def dealt(batches: Sequence[int], most: int | None) -> list[int]:
    """How many batches of each source an evaluation of `most` batches reads, in turn; None reads all.

    It reads at least one of every source, also where there are more sources than `most`.
    """
    if most is None:
        return list(batches)
    most = max(most, sum(count > 0 for count in batches))
    level = max((n for n in range(most + 1) if sum(min(count, n) for count in batches) <= most), default=0)
    counts = [min(count, level) for count in batches]
    for source, count in enumerate(batches):
        counts[source] += count > level and sum(counts) < most
    return counts


def validation_batches(shards: Sequence[TokenShards], settings: DataSettings, batch_size: int) -> ValidationBatches:
    """The batches of the validation sources, packed as in training but neither shuffled nor mixed.

    Raises UserError, which names the source, where one is shorter than a row.
    """
    check_one_tokenizer(shards)
    sources = [pack(source, settings, keep_rest=True) for source in shards]
    return ValidationBatches(sources, settings.sequence_length, batch_size)


def interleaved(parts: Sequence[tuple[np.ndarray, Batch]], rows: int) -> Batch:
    """One batch of `rows` rows from batches and the places of their rows; other rows are padding."""
    first_where, first = parts[0]
    if len(parts) == 1 and len(first_where) == rows:
        return first
    out = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in first.items()}
    for where, batch in parts:
        for name, array in batch.items():
            out[name][where] = array
    return out


def check_one_tokenizer(shards: Sequence[TokenShards]) -> None:
    """Raises UserError where the shards were made with several tokenizers."""
    for source in shards[1:]:
        if source.manifest.tokenizer != shards[0].manifest.tokenizer:
            raise UserError(
                f"{source.name}: made with tokenizer {source.manifest.tokenizer}: expected "
                f"{shards[0].manifest.tokenizer}, as of {shards[0].name}; prepare both with one tokenizer"
            )
