"""Random numbers that belong to a row: what is drawn for a row is a function of seed, row and epoch alone.

In: a stream, which a seed, a source and a purpose make, and the numbers of rows and epochs. Out: uniform numbers. Each
row has a SplitMix64 generator of its own (Steele et al. 2014, "Fast splittable pseudorandom number generators"), whose
n-th number is computed without those before it, so that there is no generator state.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from lmjax.data.permutation import GOLDEN, mix

_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Stream:
    """The draws of one purpose, such as "masks", for one source."""

    seed: int
    source: int = 0
    purpose: str = ""

    def of(self, purpose: str) -> Stream:
        """The draws of another purpose for the same source; both are independent."""
        return Stream(self.seed, self.source, f"{self.purpose}/{purpose}")

    def uniform(self, rows: np.ndarray, epochs: np.ndarray, count: int) -> np.ndarray:
        """`count` numbers in [0, 1) for each row in an epoch, float64 [R, count]; rows and epochs are int64 [R].

        The first n numbers of a row do not depend on `count`.
        """
        key = np.array([self._key], np.uint64)
        rows_R = mix(mix(rows.astype(np.uint64) + np.uint64(GOLDEN)) + key)
        states_R = mix(rows_R + epochs.astype(np.uint64) * np.uint64(GOLDEN))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        return (mix(states_R[:, None] + steps[None, :]) >> np.uint64(11)) * 2.0**-53

    @property
    def _key(self) -> int:
        key = self.seed * GOLDEN + self.source * 0xD1342543DE82EF95 + zlib.crc32(self.purpose.encode()) + 1
        return int(mix(np.array([key & _WORD], np.uint64))[0])


def below(uniform: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Whole numbers from 0 to size - 1, int64, from uniform numbers in [0, 1)."""
    return np.minimum((uniform * size).astype(np.int64), np.asarray(size) - 1)
