"""The compute-optimal frontier of a fit: what a budget buys, and the compute that one table saves over another.

In: approach 3's fit and those of its bootstrap samples. Out: N, D and loss at a budget, or compute at a loss, with
intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.approach3 import fit_samples
from lmjax.scaling.bootstrap import FitOptions, Interval, interval, intervals
from lmjax.scaling.chinchilla import ChinchillaFit
from lmjax.scaling.counting import Counting
from lmjax.scaling.table import Table

COMPARED = 5  # losses


@dataclass(frozen=True)
class Optimum:
    """The parameters, tokens and loss of the best run of `flops`, and their intervals by name."""

    flops: float
    params: float
    tokens: float
    loss: float
    intervals: dict[str, Interval]


class Saving(NamedTuple):
    """The compute-optimal FLOPs of two tables at one loss, and the second divided by the first with its interval."""

    loss: float
    flops: float
    other_flops: float
    ratio: float
    interval: Interval | None


def optimum_at(
    flops: float, best: ChinchillaFit, sampled: ChinchillaFit | None = None, how: Counting = Counting()
) -> Optimum:
    """What a budget buys, FLOPs counted as `how` says, with the intervals over the samples."""

    def quantities(fit: ChinchillaFit) -> dict[str, np.ndarray]:
        return dict(zip(("params", "tokens", "loss"), how.frontier(flops, fit), strict=True))

    values = {name: float(value) for name, value in quantities(best).items()}
    return Optimum(flops, **values, intervals=intervals(quantities(sampled)) if sampled else {})


def savings(table: Table, other: Table, options: FitOptions) -> list[Saving]:
    """At losses that the frontiers of both reach within the compute of their runs, the largest first.

    Raises UserError where a table is not fitted, or where there is no such loss. The losses must be comparable: of one
    text, by one tokenizer.
    """
    fits = [fit_samples(table, options), fit_samples(other, options)]
    ends = [
        (best.frontier(each.flops.max()), best.frontier(each.flops.min()))
        for (best, _), each in zip(fits, (table, other), strict=True)
    ]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if not low < high:
        spans = " and ".join(f"{end[0]:.4g} to {end[1]:.4g}" for end in ends)
        raise UserError(f"--against: the frontiers have no loss in common ({spans}); add runs of more or less compute")
    (best, sampled), (other_best, other_sampled) = fits
    out = []
    for loss in np.linspace(high, low, COMPARED):
        flops, other_flops = float(best.flops_of(loss)), float(other_best.flops_of(loss))
        both = sampled is not None and other_sampled is not None
        ratio_S = other_sampled.flops_of(loss) / sampled.flops_of(loss) if both else np.empty(0)  # type: ignore[union-attr]
        out.append(Saving(float(loss), flops, other_flops, other_flops / flops, interval(ratio_S)))
    return out
