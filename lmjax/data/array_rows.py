"""Rows that are in memory: arrays whose first axis numbers the rows, and texts in such arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Batch, BatchSpec, Field
from lmjax.settings import RowSettings
from lmjax.tokenizers.tokenizer import Tokenizer


class ArrayRows:
    """The rows of arrays [R, ...] of one length, by the names of a batch's fields."""

    dropped_tokens = 0

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"arrays of {sizes} rows: expected as many in each")
        self._arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [B]: [B, ...] per field."""
        return {name: array[indices] for name, array in self._arrays.items()}


def text_rows(texts: Sequence[str], tokenizer: Tokenizer, length: int, **labels: Sequence[int]) -> ArrayRows:
    """A row for each text: at most `length` of its tokens, then padding; `labels` are further fields, int32 [R]."""
    shape = (len(texts), length)
    fields = {name: np.zeros(shape, np.int32) for name in (TOKENS, SEGMENTS)}
    for row, ids in enumerate(tokenizer.encode_batch(texts)):
        kept = ids[:length]
        fields[TOKENS][row, : len(kept)] = kept
        fields[SEGMENTS][row, : len(kept)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    numbers = {name: np.asarray(values, np.int32) for name, values in labels.items()}
    return ArrayRows({**fields, POSITIONS: positions, **numbers})


def text_fields(rows: RowSettings, *labels: str) -> BatchSpec:
    """The fields of a batch of `text_rows`; `labels` name further ones, of one whole number for each row."""
    texts = {name: Field((rows.batch_size, rows.sequence_length)) for name in (TOKENS, POSITIONS, SEGMENTS)}
    return texts | {name: Field((rows.batch_size,)) for name in labels}
