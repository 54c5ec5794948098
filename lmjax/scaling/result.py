"""What a fit gives: values with intervals, how well it fits, and how well it predicts rows that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax.scaling.bootstrap import LEVEL, Interval
from lmjax.scaling.chinchilla import ChinchillaFit
from lmjax.scaling.table import Table

MOST_SHOWN = 6  # residuals, or budgets that are left out, as text; JSON has all


@dataclass(frozen=True)
class HeldOut:
    """The errors of rows that the fit was made without: what they are, how many were fitted and predicted, the mean and
    the largest error: prediction / measured - 1 of a loss, prediction - measured of an accuracy."""

    what: str
    fitted: int
    rows: int
    mean_error: float
    largest_error: float
    of: str = "loss"


@dataclass(frozen=True)
class Result:
    """A fit of a table. `intervals` hold the 2.5% and 97.5% quantiles over bootstrap samples; `residuals` [R] are
    log(prediction / loss), `points` the compute-optimal (C, N, D, loss) that a method found, `converted` what the
    exponents are in other conventions, `lack_of_fit` numbers by name, `predictions` are of rows held out, `fit` and
    `sampled` those of approach 3."""

    method: str
    formula: str
    table: Table
    values: dict[str, float]
    intervals: dict[str, Interval]
    samples: int
    convention: str = ""
    notes: tuple[str, ...] = ()
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0))
    lack_of_fit: dict[str, float] = field(default_factory=dict)
    held_out: tuple[HeldOut, ...] = ()
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    converted: tuple[dict[str, Any], ...] = ()
    predictions: tuple[dict[str, Any], ...] = ()
    fit: ChinchillaFit | None = None
    sampled: ChinchillaFit | None = None

    def to_json(self) -> dict[str, Any]:
        """Values by name beside their intervals, ready for `json.dumps` after `finite`."""
        out: dict[str, Any] = {"method": self.method, "formula": self.formula, "rows": len(self.table)}
        out |= {**self.values, "intervals": self.intervals}
        out |= {"level": LEVEL, "bootstrap_samples": self.samples, "convention": self._convention}
        out["converted"] = list(self.converted)
        if self.lack_of_fit:
            out["lack_of_fit"] = self.lack_of_fit
        if len(self.residuals):
            out["largest_residuals"] = [
                {"row": self.table.places[row], "log_residual": float(self.residuals[row])} for row in self._largest()
            ]
        out["held_out"] = [vars(part) for part in self.held_out]
        if self.predictions:
            out["predictions"] = list(self.predictions)
        if len(self.points):
            names = ("C", "N", "D", "loss")
            out["points"] = [dict(zip(names, row, strict=True)) for row in self.points.tolist()]
        return out | {"notes": [*self.table.notes, *self.notes]}

    def lines(self) -> list[str]:
        """The result as text: a table of values with intervals, then what it is worth."""
        out = [f"{self.method}: {self.formula}", f"  {len(self.table)} runs; {self._convention}"]
        head = f"{100 * LEVEL:.0f}% of {self.samples} bootstrap samples" if self.intervals else ""
        out.append(f"  {'':10} {'value':<14}{head}")
        for name, value in self.values.items():
            out.append(f"  {name:10} {value:<14.6g}{_range(self.intervals.get(name))}".rstrip())
        for each in self.converted:
            out.append(f"  {'a':10} {each['a']:<14.6g}{_range(each['interval']):24}where {each['convention']}")
        out += [f"  optimum at C {c:.4g}: N {n:.4g}, D {d:.4g}, loss {loss:.5g}" for c, n, d, loss in self._points()]
        if self.lack_of_fit:
            numbers = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.lack_of_fit.items())
            out.append(f"  lack of fit: {numbers}")
        if len(self.residuals):
            worst = (f"{self.table.places[row]} {self.residuals[row]:+.3f}" for row in self._largest())
            out.append(f"  largest log(prediction / loss): {'; '.join(worst)}")
        if self.held_out:
            out.append(f"  {'fitted to rows below':26} {'fitted':>7}{'predicted':>10}{'mean error':>12}{'largest':>10}")
        for part in self.held_out[-MOST_SHOWN:]:
            unit = "%" if part.of == "loss" else "p"
            errors = f"{100 * part.mean_error:>+11.2f}{unit}{100 * part.largest_error:>+9.2f}{unit}"
            out.append(f"  {part.what:26} {part.fitted:>7}{part.rows:>10}{errors}")
        return out + self._predicted() + [f"  note: {note}" for note in self.notes]

    def _predicted(self) -> list[str]:
        """The predictions of the runs of most compute."""
        if not self.predictions:
            return []
        out = ["  accuracy predicted from N and D (p: points of 100), of the runs held out that have the most compute:"]
        for each in self.predictions[-MOST_SHOWN:]:
            ends = f" ({_range(each['interval'])})" if each["interval"] else ""
            loss = f"loss {each['predicted_loss']:.4g}, measured {each['loss']:.4g}"
            accuracy = f"accuracy {each['predicted_accuracy']:.4f}{ends}, measured {each['accuracy']:.4f}"
            out.append(f"  {each['row']}: N {each['N']:.3g}, D {each['D']:.3g}: {loss}; {accuracy}")
        return out

    @property
    def _convention(self) -> str:
        return self.convention or self.table.convention

    def _largest(self) -> np.ndarray:
        return np.argsort(-np.abs(self.residuals))[:MOST_SHOWN]

    def _points(self) -> np.ndarray:
        """At most a dozen, from the first to the last."""
        shown = np.unique(np.linspace(0, len(self.points) - 1, min(len(self.points), 12)).round().astype(int))
        return self.points[shown]


def _range(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.5g} to {ends[1]:.5g}" if ends else ""


def finite(value: Any) -> Any:
    """The value as JSON can hold it: a float that is not finite, at any depth, is None."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
