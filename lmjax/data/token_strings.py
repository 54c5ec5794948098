"""Token ids of many texts in one array, from which the rows of a batch are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class TokenStrings:
    """Ids, or other numbers of tokens, of texts one after the other: those of text i are firsts[i] to firsts[i + 1]."""

    ids: np.ndarray  # int [tokens of all texts]
    firsts: np.ndarray  # int64 [texts + 1]

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> TokenStrings:
        """Of the numbers of each text, int [tokens]."""
        ids = np.concatenate([np.zeros(0, np.int32), *texts]).astype(np.int32, copy=False)
        return cls.of_sizes(ids, np.array([len(text) for text in texts], np.int64))

    @classmethod
    def of_sizes(cls, ids: np.ndarray, sizes: np.ndarray) -> TokenStrings:
        """Of the numbers of all texts, and the tokens of each, int64 [texts]."""
        return cls(ids, np.concatenate([[0], np.cumsum(sizes)]))

    def __getitem__(self, text: int) -> np.ndarray:
        return self.ids[self.firsts[text] : self.firsts[text + 1]]

    @cached_property
    def sizes(self) -> np.ndarray:
        """The tokens of each text, int64 [texts]."""
        return np.diff(self.firsts)

    def taken(self, texts: np.ndarray) -> TokenStrings:
        """The texts with these numbers, int64 [n]."""
        sizes = self.sizes[texts]
        return TokenStrings.of_sizes(self.ids[np.repeat(self.firsts[texts], sizes) + within(sizes)], sizes)

    def at(self, texts: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The numbers at places [..., T] of texts [...], [..., T]; any number where a place is not in its text."""
        if not len(self.ids):
            return np.zeros(np.broadcast_shapes(places.shape, (*texts.shape, 1)), self.ids.dtype)
        return self.ids[np.clip(self.firsts[texts][..., None] + places, 0, len(self.ids) - 1)]


def within(counts: np.ndarray) -> np.ndarray:
    """0 .. count - 1 for each count, one after the other, int64 [sum of counts]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
