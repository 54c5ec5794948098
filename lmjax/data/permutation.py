"""A seeded shuffle that needs no memory: the image of an index under a pseudorandom permutation of 0 .. size - 1.

A Feistel network on pairs (left, right) with left < a and right < b permutes a x b >= size numbers whatever its round
function is; walking along the cycle until the image is below `size` restricts the permutation to `size` numbers
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 3 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ROUNDS = 4  # each changes both halves
GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class Shuffle:
    """One permutation per source and epoch, of `sizes[source]` numbers."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        right = [math.isqrt(max(size - 1, 0)) + 1 for size in sizes]
        left = [math.ceil(size / b) for size, b in zip(sizes, right, strict=True)]
        self._sizes, self._left, self._right = (np.array(numbers, np.uint64) for numbers in (sizes, left, right))
        streams = [(seed * GOLDEN + source * 0xD1342543DE82EF95 + 1) & _WORD for source in range(len(sizes))]
        self._keys = mix(np.array(streams, np.uint64))

    def images(self, sources: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The images of `indices[i] < sizes[sources[i]]` in epoch `epochs[i]`; int64 [n] in and out.

        Time and memory depend on n alone.
        """
        keys = mix(self._keys[sources] + epochs.astype(np.uint64))
        sizes, left, right = self._sizes[sources], self._left[sources], self._right[sources]
        images = _feistel(indices.astype(np.uint64), left, right, keys)
        walking = np.flatnonzero(images >= sizes)
        while len(walking):
            images[walking] = _feistel(images[walking], left[walking], right[walking], keys[walking])
            walking = walking[images[walking] >= sizes[walking]]
        return images.astype(np.int64)


def _feistel(values: np.ndarray, left_size: np.ndarray, right_size: np.ndarray, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(values, right_size)
    for _ in range(_ROUNDS):
        keys = keys + np.uint64(GOLDEN)
        left = (left + mix(right ^ keys) % left_size) % left_size
        keys = keys + np.uint64(GOLDEN)
        right = (right + mix(left ^ keys) % right_size) % right_size
    return left * right_size + right


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 numbers that spreads every bit over all (the finaliser of SplitMix64); they wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
