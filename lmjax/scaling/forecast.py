"""What a budget buys, by approach 3: the best parameters, tokens and loss, and how far that is from the table's runs.

In: a table and a number of FLOPs, counted as the table counts them. Out: a `Forecast`, a *prediction* with its error
where the table has a run of that budget, which is then not fitted, and a *projection* elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import require
from lmjax.scaling.approach3 import fit_samples
from lmjax.scaling.bootstrap import FitOptions, Interval, interval
from lmjax.scaling.chinchilla import ChinchillaFit, determined
from lmjax.scaling.counting import Counting, counting
from lmjax.scaling.frontier import Optimum, optimum_at
from lmjax.scaling.table import Table

SAME_BUDGET = 0.1  # between logs of FLOPs
FAR = 10.0  # times the largest fitted run, beyond which a forecast is worth little


@dataclass(frozen=True)
class Measured:
    """The best run that the table has of the budget: what it is, and the error of its loss as it was predicted."""

    place: str
    params: float
    tokens: float
    loss: float
    predicted: float
    interval: Interval | None

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted / self.loss - 1


@dataclass(frozen=True)
class Law:
    """What was fitted, and to each of the bootstrap samples; and how the table counts FLOPs."""

    best: ChinchillaFit
    sampled: ChinchillaFit | None
    counting: Counting

    def loss(self, params: float, tokens: float) -> tuple[float, Interval | None]:
        """The loss of a run, with its interval."""
        ends = None if self.sampled is None else interval(self.sampled.loss(params, tokens))
        return float(self.best.loss(params, tokens)), ends


@dataclass(frozen=True)
class Forecast(Optimum):
    """The best run of `flops`, with intervals by name; `fitted` runs of at most `largest` FLOPs tell it."""

    fitted: int
    largest: float
    law: Law
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> str:
        """How the table counts FLOPs, in words."""
        return self.law.counting.what

    @property
    def kind(self) -> str:
        return "projection" if self.measured is None else "prediction"


def forecast(table: Table, flops: float, options: FitOptions) -> Forecast:
    """The forecast of a budget. Raises UserError where the rows do not determine the formula."""
    require(math.isfinite(flops) and flops > 0, "--flops", flops, "a number above 0", "write it as 1e21")
    how, same = counting(table), np.abs(np.log(table.flops / flops)) < SAME_BUDGET
    notes: list[str] = list(table.notes)
    fitted = table.take(table.flops < flops * math.exp(-SAME_BUDGET)) if same.any() else table
    if same.any() and not determined(fitted.params, fitted.tokens):
        fitted = table.take(~same)
        notes.append("too few runs have fewer FLOPs: those of more are fitted, too")
    law = Law(*fit_samples(fitted, options), how)
    found = optimum_at(flops, law.best, law.sampled, how)
    largest = float(fitted.flops.max())
    if flops > FAR * largest:
        far = f"{flops / largest:,.0f} times the FLOPs of the largest run"
        notes.append(f"warning: {far}, beyond {FAR:g} times a fit says little; add larger runs")
    return Forecast(
        **vars(found),
        fitted=len(fitted),
        largest=largest,
        law=law,
        measured=_measured(table.take(same), law) if same.any() else None,
        notes=tuple(notes),
    )


def _measured(rows: Table, law: Law) -> Measured:
    at = int(rows.loss.argmin())
    size = (float(rows.params[at]), float(rows.tokens[at]))
    return Measured(rows.places[at], *size, float(rows.loss[at]), *law.loss(*size))
