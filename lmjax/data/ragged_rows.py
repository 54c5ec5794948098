"""Rows of texts of several lengths in memory: one row for each example, or one for each of its options.

In: the tokens of framed texts, and what each example has beside them. Out: batches [B, T] or [B, K, T] of
data/batch.py, padded with token 0 and segment 0, and the lengths by which a loader groups rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.data.batch import (
    POSITIONS,
    SEGMENTS,
    TARGETS,
    TOKENS,
    TYPES,
    WEIGHTS,
    Batch,
    BatchSpec,
    Field,
    one_segment,
)
from lmjax.data.token_strings import TokenStrings
from lmjax.settings import RowSettings


class RaggedRows:
    """The rows of examples, R in all.

    Args:
      texts: the tokens and the types of each framed text, int32 [n], n <= length.
      length: T, the tokens of a row.
      fields: further fields of a batch, [R, ...].
      options: the texts of each row by their numbers, int [R, K], -1 where it has fewer; None where each text is a row
        and there is no axis of options.
      types: how many types of tokens the model knows, at least 1.
      examples: the number of the example, int [R], that each row is a part of; None: each is one.
      entries: of the tokenizer: each token then predicts the next one (`targets`), with the weight 1 where that is one
        of them, as special tokens behind the table are not. None leaves these fields out.

    lengths: int32 [R], the tokens of the longest text of each row.
    """

    dropped_tokens = 0

    def __init__(
        self,
        texts: Sequence[tuple[np.ndarray, np.ndarray]],
        length: int,
        fields: Mapping[str, np.ndarray],
        *,
        options: np.ndarray | None = None,
        types: int = 2,
        examples: np.ndarray | None = None,
        entries: int | None = None,
    ) -> None:
        empty = np.zeros(0, np.int32)  # the last text, for no option
        self._tokens = TokenStrings.of([*(tokens for tokens, _ in texts), empty])
        own_types = np.concatenate([*(own for _, own in texts), empty])
        self._types = TokenStrings(np.minimum(own_types, max(types, 1) - 1).astype(np.int8), self._tokens.firsts)
        self._length, self._fields, self._entries = length, dict(fields), entries
        self._options = np.arange(len(texts)) if options is None else np.asarray(options, np.int64)
        self.examples = np.arange(len(self._options)) if examples is None else examples
        self.lengths = self._tokens.sizes[self._options].reshape(len(self._options), -1).max(axis=1).astype(np.int32)

    def __len__(self) -> int:
        return len(self._options)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [B]."""
        texts, column_T = self._options[indices], np.arange(self._length)
        sizes = self._tokens.sizes[texts][..., None]
        real = column_T < sizes
        batch = {
            TOKENS: np.where(real, self._tokens.at(texts, column_T), 0),
            TYPES: np.where(real, self._types.at(texts, column_T), 0).astype(np.int32),
            **one_segment(real),
        }
        if self._entries is not None:
            following = np.where(column_T + 1 < sizes, self._tokens.at(texts, column_T + 1), self._entries)
            known = following < self._entries
            batch |= {TARGETS: np.where(known, following, 0).astype(np.int32), WEIGHTS: known.astype(np.float32)}
        return batch | {name: array[indices] for name, array in self._fields.items()}


def ragged_fields(
    rows: RowSettings, fields: Mapping[str, str], *, options: int | None = None, language: bool = False
) -> BatchSpec:
    """The fields of a batch of `RaggedRows`; `fields` are the dtypes of those with one number for each example."""
    shape = (rows.batch_size, *([] if options is None else [options]), rows.sequence_length)
    names = {TOKENS: "int32", TYPES: "int32", POSITIONS: "int32", SEGMENTS: "int32"}
    names |= {TARGETS: "int32", WEIGHTS: "float32"} if language else {}
    spec = {name: Field(shape, dtype) for name, dtype in names.items()}
    return spec | {name: Field(shape[:1], dtype) for name, dtype in fields.items()}
