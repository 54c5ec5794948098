"""Sequences of which only the ends are asked for: the beginning that a group of them shares is read once.

In: groups of token ids, as the choices of a question are. Out: batches of equal shape. A group's shared beginning is a
row that is padded on the left; what each of its sequences has after it is a row that is padded on the right and
continues from there, seeing the beginning and itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, Batch

SHORTEST = 32  # tokens of a shared beginning
STEPS = 8  # between two powers of two: the lengths to which beginnings are rounded up
ENDING_STEP = 16  # tokens: what follows is rounded up to a multiple of this


class Ending(NamedTuple):
    """A sequence, and how many tokens at its end are asked for: fewer than it has."""

    ids: np.ndarray
    asked: int


class Shape(NamedTuple):
    """Of a batch's rows: tokens of the beginning, sequences of a group, tokens of each after the beginning."""

    beginning: int
    sequences: int
    rest: int

    @property
    def tokens(self) -> int:
        """How many keys and values a group's rows hold."""
        return self.sequences * (self.beginning + self.rest)


class Group(NamedTuple):
    """Endings whose first `shared` tokens are the same."""

    endings: Sequence[Ending]
    shared: int

    @property
    def shape(self) -> Shape:
        rest = max(len(ending.ids) - 1 for ending in self.endings) - self.shared
        return Shape(_rounded(self.shared), len(self.endings), -(-rest // ENDING_STEP) * ENDING_STEP)


def grouped(endings: Sequence[Ending]) -> Group:
    """A group with the longest beginning that is shared; the token before an ending's first is no part of it."""
    most = min(len(ending.ids) - ending.asked for ending in endings) - 1
    rows = np.stack([ending.ids[:most] for ending in endings])
    differs = np.flatnonzero((rows != rows[0]).any(axis=0))
    return Group(endings, int(differs[0]) if len(differs) else most)


def batches(groups: Sequence[Group], tokens: int) -> Iterator[tuple[Shape, list[int]]]:
    """The numbers of the groups that are read together, and the shape of their rows; a batch has up to so many tokens.

    Groups are joined by the length of their beginning, the number of their sequences, and the rest of the longest.
    """

    def kind(number: int) -> tuple[int, int]:
        return groups[number].shape[:2]

    order = sorted(range(len(groups)), key=lambda number: groups[number].shape)
    for (beginning, sequences), same in itertools.groupby(order, kind):
        numbers = list(same)
        while numbers:
            rest = groups[numbers[0]].shape.rest
            taken = 0
            while taken < len(numbers):
                longest = groups[numbers[taken]].shape.rest
                if taken and (taken + 1) * Shape(beginning, sequences, longest).tokens > tokens:
                    break
                rest, taken = longest, taken + 1
            yield Shape(beginning, sequences, rest), numbers[:taken]
            numbers = numbers[taken:]


def arrays(groups: Sequence[Group], shape: Shape, rows: int) -> tuple[Batch, Batch]:
    """The beginnings, [rows, beginning], and what follows, [rows, sequences, rest]; rows without a group are empty."""
    first = {name: np.zeros((rows, shape.beginning), np.int32) for name in (TOKENS, POSITIONS, SEGMENTS)}
    names = (TOKENS, TARGETS, POSITIONS, SEGMENTS)
    then = {name: np.zeros((rows, shape.sequences, shape.rest), np.int32) for name in names}
    for row, group in enumerate(groups):
        shared, at = group.shared, shape.beginning - group.shared
        first[TOKENS][row, at:], first[SEGMENTS][row, at:] = group.endings[0].ids[:shared], 1
        first[POSITIONS][row, at:] = np.arange(shared)
        for number, (ids, _) in enumerate(group.endings):
            own = slice(0, len(ids) - 1 - shared)
            then[TOKENS][row, number, own], then[TARGETS][row, number, own] = ids[shared:-1], ids[shared + 1 :]
            then[POSITIONS][row, number, own] = np.arange(shared, len(ids) - 1)
            then[SEGMENTS][row, number, own] = 1
    return first, then


def _rounded(length: int) -> int:
    step = max(SHORTEST, (1 << (length - 1).bit_length()) // 2 // STEPS)
    return -(-max(length, 1) // step) * step
