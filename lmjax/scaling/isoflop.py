"""Chinchilla's approach 2: a parabola in log N through the losses of each budget, and a power law through the minima.

In: a table whose runs belong to budgets. Out: the exponents a and b of N_opt ~ C^a and D_opt ~ C^b. arXiv:2203.15556,
section 3.2. A parabola assumes that a profile is symmetric about its minimum, which E + A/N^alpha + B/D^beta is not: on
grids that are centred on the optimum this biases the prefactor, and on grids whose centre drifts with the budget also
the exponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions, drawn, intervals
from lmjax.scaling.power_laws import polynomials, power_laws
from lmjax.scaling.result import Result
from lmjax.scaling.table import Table

FEWEST_ROWS = 4  # of a budget
FEWEST_BUDGETS = 2
SPREAD = 0.1  # of FLOPs within a budget, beyond which that is said


class _Minima(NamedTuple):
    """Of S weightings and B budgets: log N, log D and loss at the minimum [S, B], NaN where there is none inside."""

    log_params: np.ndarray
    log_tokens: np.ndarray
    loss: np.ndarray


def approach2(table: Table, options: FitOptions) -> list[Result]:
    """The power laws of the minima. Raises UserError where fewer than two budgets have a minimum inside their grid."""
    budgets, notes = _budgets(table)
    minima = _minima(table, budgets, np.ones((1, len(table))))
    inside = np.isfinite(minima.log_params[0])
    if not inside.all():
        notes.append(f"no minimum inside the grid of N, left out: budget {_values(budgets[~inside])}")
    if inside.sum() < FEWEST_BUDGETS:
        which = "every minimum lies" if not inside.any() else f"all but {inside.sum()} minima lie"
        what = f"{which} at or beyond an edge of its budget's grid of N ({len(budgets)} budgets)"
        raise UserError(
            f"no fit: {what}; expected minima inside at least {FEWEST_BUDGETS}; add smaller or larger models"
        )
    if inside.sum() == 2:
        notes.append("two budgets determine a power law exactly: nothing is left to judge it by")
    at_edge = [budget for budget in budgets[inside] if _lowest_at_edge(table.take(table.budget == budget))]
    if at_edge:
        notes.append(
            f"the lowest loss is at an edge of the grid of N, though the parabola's is not: {_values(at_edge)}"
        )
    values = power_laws(budgets[inside], minima.log_params[:, inside], minima.log_tokens[:, inside])
    ends = {}
    if options.samples:
        sampled = _minima(table, budgets[inside], drawn(len(table), options, table.budget))
        ends = intervals(power_laws(budgets[inside], sampled.log_params, sampled.log_tokens))
        lost = int((~np.isfinite(sampled.log_params)).any(axis=1).sum())
        if lost:
            notes.append(f"{lost} of {options.samples} samples lose the minimum of a budget and use the others")
    points = np.stack([budgets, *(np.exp(part[0]) for part in minima[:2]), minima.loss[0]], axis=1)[inside]
    result = Result(
        method="isoflop (approach 2)",
        formula="N_opt = k_N C^a, D_opt = k_D C^b through the minima of parabolas in log N",
        table=table,
        values={name: float(value[0]) for name, value in values.items()},
        intervals=ends,
        samples=options.samples,
        convention=f"{table.convention.rpartition(';')[0]}; C is the budget of a profile",
        notes=tuple(notes),
        points=points,
    )
    return [result]


def _lowest_at_edge(profile: Table) -> bool:
    return profile.params[profile.loss.argmin()] in (profile.params.min(), profile.params.max())


def _values(budgets: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{budget:.3g}" for budget in budgets)


def _budgets(table: Table) -> tuple[np.ndarray, list[str]]:
    """The budgets with enough rows of different sizes, and a note on the others."""
    usable: list[float] = []
    few: list[float] = []
    for budget in np.unique(table.budget):
        rows = table.budget == budget
        enough = rows.sum() >= FEWEST_ROWS and len(np.unique(table.params[rows])) >= 3
        (usable if enough else few).append(budget)
    if len(usable) < FEWEST_BUDGETS:
        what = f"{len(usable)} budgets have at least {FEWEST_ROWS} runs of three different sizes"
        raise UserError(f"too few points: {what}, expected {FEWEST_BUDGETS}; add runs, or name the budgets' column")
    notes = [f"{len(few)} budgets with fewer than {FEWEST_ROWS} runs, or three sizes, are left out"] if few else []
    profiles = [table.flops[table.budget == budget] for budget in usable]
    spread = max(float(flops.max() / flops.min()) for flops in profiles) - 1
    if "budget" not in table.columns and spread > SPREAD:
        what = f"the FLOPs of runs that are taken for one budget differ by up to {100 * spread:.0f}%"
        notes.append(f"{what}, which moves minima: this is no table of IsoFLOP profiles; trust approach 3")
    return np.array(usable), notes


def _minima(table: Table, budgets: np.ndarray, weights_SR: np.ndarray) -> _Minima:
    columns = []
    for budget in budgets:
        (rows,) = np.nonzero(table.budget == budget)
        log_N, log_D = np.log(table.params[rows]), np.log(table.tokens[rows])
        W, centre = weights_SR[:, rows], log_N.mean()
        c0, c1, c2 = polynomials(log_N - centre, table.loss[rows], W, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = -c1 / (2 * c2)
            drawn_N = np.where(W > 0, log_N - centre, np.nan)
            inside = (c2 > 0) & (x > np.nanmin(drawn_N, axis=1)) & (x < np.nanmax(drawn_N, axis=1))
            x = np.where(inside, x, np.nan)
        d0, d1 = polynomials(log_N - centre, log_D, W, 1)
        columns.append((x + centre, d0 + d1 * x, c0 + c1 * x + c2 * x**2))
    return _Minima(*(np.stack(part, axis=1) for part in zip(*columns, strict=True)))
