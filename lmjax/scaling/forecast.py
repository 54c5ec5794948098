"""What a budget buys, by approach 3: the best parameters, tokens and loss, and how far that is from the table's runs.

In: a table and a number of FLOPs, counted as the table counts them. Out: a `Forecast`, a *prediction* with its error
where the table has a run of that budget, which is then not fitted, and a *projection* elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.errors import UserError, require
from lmjax.scaling.approach3 import fit_samples
from lmjax.scaling.bootstrap import FitOptions, Interval, interval, intervals
from lmjax.scaling.chinchilla import ChinchillaFit, require_varied
from lmjax.scaling.table import Table

SAME_BUDGET = 0.1  # between logs of FLOPs
FAR = 10.0  # times the largest fitted run, beyond which a forecast is worth little


@dataclass(frozen=True)
class Counting:
    """C = 6 N D k N^g: how a table's FLOPs follow from its parameters; k = 1 and g = 0 where C = 6 N D."""

    k: float = 1.0
    g: float = 0.0
    what: str = "C = 6 N D"

    def tokens(self, flops: float, params: Any) -> Any:
        """The tokens that the FLOPs pay for."""
        return flops / (6 * self.k * params ** (1 + self.g))

    def optimum(self, flops: float, fit: ChinchillaFit) -> Any:
        """The parameters of least loss at these FLOPs: where d/dN of E + A/N^alpha + B/D(N)^beta is 0."""
        power = fit.beta * (1 + self.g)
        with np.errstate(invalid="ignore"):  # a sample whose exponents differ in sign has no optimum
            ratio = np.log(fit.alpha / power) + fit.log_A - fit.log_B + fit.beta * np.log(flops / (6 * self.k))
            return np.exp(ratio / (fit.alpha + power))


def counting(table: Table) -> Counting:
    """How the table counts FLOPs, by its column where it has one."""
    ratio_R = np.log(table.flops / (6 * table.params * table.tokens))
    if "flops" not in table.columns or np.abs(ratio_R).max() < 1e-3:
        return Counting()
    g, log_k = np.polyfit(np.log(table.params), ratio_R, 1)
    error = np.abs(ratio_R - log_k - g * np.log(table.params)).max()
    what = f"C is the column {table.columns['flops']!r} = 6 N D x {math.exp(log_k):.3g} N^{g:.3f}, within {error:.1%}"
    return Counting(math.exp(log_k), float(g), what)


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
class Forecast:
    """The best run of `flops`, with intervals by name; `fitted` runs of at most `largest` FLOPs tell it."""

    flops: float
    params: float
    tokens: float
    loss: float
    intervals: dict[str, Interval]
    fitted: int
    largest: float
    counted: str
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "projection" if self.measured is None else "prediction"


def forecast(table: Table, flops: float, options: FitOptions) -> Forecast:
    """The forecast of a budget. Raises UserError where the rows do not determine the formula."""
    require(math.isfinite(flops) and flops > 0, "--flops", flops, "a number above 0", "write it as 1e21")
    how, same = counting(table), np.abs(np.log(table.flops / flops)) < SAME_BUDGET
    notes: list[str] = list(table.notes)
    fitted = table.take(table.flops < flops * math.exp(-SAME_BUDGET)) if same.any() else table
    if same.any() and not _determined(fitted):
        fitted = table.take(~same)
        notes.append("too few runs have fewer FLOPs: those of more are fitted, too")
    best, sampled = fit_samples(fitted, options)
    params = float(how.optimum(flops, best))
    tokens = float(how.tokens(flops, params))
    samples: dict[str, Any] = {}
    if sampled is not None:
        own = how.optimum(flops, sampled)
        samples = {"params": own, "tokens": how.tokens(flops, own)}
        samples["loss"] = sampled.loss(samples["params"], samples["tokens"])
    largest = float(fitted.flops.max())
    if flops > FAR * largest:
        far = f"{flops / largest:,.0f} times the FLOPs of the largest run"
        notes.append(f"warning: {far}, beyond {FAR:g} times a fit says little; add larger runs")
    return Forecast(
        flops=flops,
        params=params,
        tokens=tokens,
        loss=float(best.loss(params, tokens)),
        intervals=intervals(samples),
        fitted=len(fitted),
        largest=largest,
        counted=how.what,
        measured=_measured(table.take(same), best, sampled) if same.any() else None,
        notes=tuple(notes),
    )


def _measured(rows: Table, best: ChinchillaFit, sampled: ChinchillaFit | None) -> Measured:
    at = int(rows.loss.argmin())
    size = (float(rows.params[at]), float(rows.tokens[at]))
    ends = None if sampled is None else interval(sampled.loss(*size))
    return Measured(rows.places[at], *size, float(rows.loss[at]), float(best.loss(*size)), ends)


def _determined(table: Table) -> bool:
    try:
        require_varied(table.params, table.tokens)
    except UserError:
        return False
    return True
