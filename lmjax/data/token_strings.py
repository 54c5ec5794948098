"""Token ids of many texts in one array, from which the rows of a batch are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TokenStrings:
    """Ids, or other numbers of tokens, of texts one after the other: those of text i are firsts[i] to firsts[i + 1]."""

    ids: np.ndarray  # int32
    firsts: np.ndarray  # int64 [texts + 1]

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> TokenStrings:
        """Of the numbers of each text, int32 [tokens]."""
        sizes = np.array([0, *map(len, texts)], np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *texts]), np.cumsum(sizes))

    def __getitem__(self, text: int) -> np.ndarray:
        return self.ids[self.firsts[text] : self.firsts[text + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each text, int64 [texts]."""
        return np.diff(self.firsts)

    def at(self, texts_B: np.ndarray, places_BT: np.ndarray) -> np.ndarray:
        """The numbers at these places of the texts, int32 [B, T]; any number where a place is not in its text."""
        if not len(self.ids):
            return np.zeros(np.broadcast_shapes(places_BT.shape, (len(texts_B), 1)), np.int32)
        return self.ids[np.clip(self.firsts[texts_B][:, None] + places_BT, 0, len(self.ids) - 1)]
