"""Means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean and its standard error, the deviation of the sample over the root of its size; NaN of one."""

    value: float
    error: float


def mean_of(values: Sequence[float]) -> Mean:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Mean(float(np.mean(values)), spread / math.sqrt(len(values)))


def mean_over_groups(groups: Sequence[Sequence[float]]) -> Mean:
    """The mean of all values, whose error knows that the values of a group go together, as the pairs of a prompt do.

    It is the linearised error of a ratio (Cochran 1977, chapter 6); with one value in each group, that of `mean_of`.
    """
    sums, sizes = np.array([sum(own) for own in groups], float), np.array([len(own) for own in groups], float)
    value, count = float(sums.sum() / sizes.sum()), len(groups)
    if count < 2:
        return Mean(value, math.nan)
    spread = np.square(sums - value * sizes).sum() * count / (count - 1)
    return Mean(value, float(np.sqrt(spread) / sizes.sum()))
