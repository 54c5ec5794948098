"""Bootstrap samples of a table's rows, and the intervals of what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.table import Table

LEVEL = 0.95  # of every interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class FitOptions:
    """What every method takes: bootstrap samples (0: no intervals) and their seed; how many times more a prediction
    above a row costs than one below it; rows to predict that are not fitted."""

    samples: int = 200
    seed: int = 0
    asymmetry: float = 1.0
    held_out: Table | None = None


def drawn(rows: int, options: FitOptions, groups: np.ndarray | None = None) -> np.ndarray:
    """Bootstrap samples [S, R]: how often each row was drawn; within its group where groups [R] are given."""
    rng = np.random.default_rng(options.seed)
    weights_SR = np.zeros((options.samples, rows))
    groups = np.zeros(rows) if groups is None else groups
    for group in np.unique(groups):
        (index,) = np.nonzero(groups == group)
        weights_SR[:, index] = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=options.samples)
    return weights_SR


def interval(values_S: np.ndarray) -> Interval | None:
    """The quantiles of the values that are finite; None for fewer than two."""
    finite = values_S[np.isfinite(values_S)]
    if len(finite) < 2:
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(samples: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """The interval of each value over its samples [S], where there is one."""
    found = {name: interval(values) for name, values in samples.items()}
    return {name: ends for name, ends in found.items() if ends is not None}
