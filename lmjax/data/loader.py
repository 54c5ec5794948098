"""Batches as a pure function of the settings and the step.

Token shards and mixture weights go in; `batch_at(step)` comes out, for the whole batch or for one process's rows. No
state is kept: resuming, changing the number of processes and looking at a past batch are the same call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.mixture import Mixture
from lmjax.data.packing import Rows, pack
from lmjax.data.permutation import Shuffle
from lmjax.data.prefetch import prefetch
from lmjax.data.ramp import BatchRamp, RampTable
from lmjax.data.token_shards import TokenShards
from lmjax.errors import UserError
from lmjax.settings import DataSettings

__all__ = ["Loader", "RowLoader", "ValidationBatches", "prefetch", "validation_batches"]


class RowLoader:
    """The training batches of a weighted mixture of sources, each given as rows of whatever kind.

    rows_per_epoch, dropped_tokens: per source, the rows of one epoch, and the tokens at its end that are in none.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float], settings: DataSettings) -> None:
        if len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources and {len(weights)} weights")
        self.settings = settings
        self._sources = list(sources)
        self._mixture = Mixture(weights)
        self._ramp = BatchRamp(settings)
        self.rows_per_epoch = [len(rows) for rows in self._sources]
        self._sizes = np.array(self.rows_per_epoch, np.int64)
        self._shuffle = Shuffle(self.rows_per_epoch, settings.seed) if settings.shuffle else None
        self.dropped_tokens = [rows.dropped_tokens for rows in self._sources]

    def batch_at(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, [B, T] per field of data/batch.py, or those of its rows that `rows` selects.

        O(1) in the step, and the same whatever was asked before. Arrays may be read-only and shared between calls.
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
            return self._sources[0].batch(indices)
        places = [np.flatnonzero(sources == source) for source in range(len(self._sources))]
        parts = [(here, self._sources[source].batch(indices[here])) for source, here in enumerate(places) if len(here)]
        return _interleaved(parts, len(numbers))

    def batch_size_at(self, step: int) -> int:
        """Rows of the whole batch of this step."""
        return self._ramp.batch_size_at(step)

    def tokens_at(self, step: int) -> int:
        """Tokens (rows x sequence_length) of all steps before this one."""
        return self._ramp.tokens_at(step)

    def ramp_table(self) -> RampTable:
        """(first_steps, batch_sizes, tokens_before) of the batch-size ramp's pieces; the last piece never ends."""
        return self._ramp.table

    def epochs_at(self, step: int) -> list[float]:
        """How many epochs of each source the steps before this one have read."""
        counts = self._mixture.counts(self._ramp.rows_at(step))
        return [count / rows for count, rows in zip(counts, self.rows_per_epoch, strict=True)]


class Loader(RowLoader):
    """The training batches of token shards, packed as the settings say."""

    def __init__(self, shards: Sequence[TokenShards], weights: Sequence[float], settings: DataSettings) -> None:
        """Raises UserError where a source is shorter than one row, or the sources differ in tokenizer."""
        _check_one_tokenizer(shards)
        super().__init__([pack(source, settings, keep_rest=False) for source in shards], weights, settings)


class ValidationBatches:
    """A fixed validation set: every row once, source after source, the last batch filled up with rows of weight 0."""

    def __init__(self, sources: Sequence[Rows], length: int, batch_size: int) -> None:
        self.batch_size, self.length = batch_size, length
        self._sources = list(sources)
        self._first_rows = np.cumsum([0, *(len(rows) for rows in self._sources)])

    def __len__(self) -> int:
        return math.ceil(self._first_rows[-1] / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        return self.batch_at(index)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch_at, range(len(self)))

    def batch_at(self, index: int, rows: slice | None = None) -> Batch:
        """Batch `index`, or those of its rows that `rows` selects, [rows, T] per field."""
        if not 0 <= index < len(self):
            raise IndexError(f"validation batch {index} of {len(self)}")
        numbers = np.arange(index * self.batch_size, (index + 1) * self.batch_size, dtype=np.int64)[rows or slice(None)]
        parts = []
        for rows_of_source, first, last in zip(self._sources, self._first_rows, self._first_rows[1:], strict=False):
            where = np.flatnonzero((first <= numbers) & (numbers < last))
            parts.append((where, rows_of_source.batch(numbers[where] - first)))
        return _interleaved(parts, len(numbers))


def validation_batches(shards: Sequence[TokenShards], settings: DataSettings, batch_size: int) -> ValidationBatches:
    """The batches of the validation sources, packed as `settings` says for training but neither shuffled nor mixed.

    Raises UserError, naming the source, where one is shorter than a row.
    """
    _check_one_tokenizer(shards)
    sources = [pack(source, settings, keep_rest=True) for source in shards]
    return ValidationBatches(sources, settings.sequence_length, batch_size)


def _interleaved(parts: Sequence[tuple[np.ndarray, Batch]], rows: int) -> Batch:
    """One batch of `rows` rows out of batches and the places of their rows; what is left is padding."""
    first_where, first = parts[0]
    if len(parts) == 1 and len(first_where) == rows:
        return first
    out = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in first.items()}
    for where, batch in parts:
        for name, array in batch.items():
            out[name][where] = array
    return out


def _check_one_tokenizer(shards: Sequence[TokenShards]) -> None:
    for source in shards[1:]:
        if source.manifest.tokenizer != shards[0].manifest.tokenizer:
            raise UserError(
                f"{source.name}: made with tokenizer {source.manifest.tokenizer}, but {shards[0].name} with "
                f"{shards[0].manifest.tokenizer}; prepare both with one tokenizer"
            )
