"""Approach 3 on a table: the fit, its bootstrap intervals, its lack of fit and its errors on rows held out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions, drawn, interval, intervals
from lmjax.scaling.chinchilla import ChinchillaFit, determined, fit, fit_weighted
from lmjax.scaling.counting import Counting, counting
from lmjax.scaling.goodness import diverged, lack_of_fit
from lmjax.scaling.result import HeldOut, Result
from lmjax.scaling.table import Table

NAMES = ("E", "A", "B", "alpha", "beta", "a", "b", "G")


def fit_samples(table: Table, options: FitOptions) -> tuple[ChinchillaFit, ChinchillaFit | None]:
    """The fit of all rows, and those of the bootstrap samples; None for no samples.

    Raises UserError where the rows do not determine the formula, or where their loss does not fall with N and with D.
    """
    best = fit(table.params, table.tokens, table.loss, options.asymmetry)
    for name, exponent, size in (("alpha", best.alpha, "N"), ("beta", best.beta, "D")):
        if not exponent > 0:
            what = f"no fit: {name} is {exponent:.3g}, so the loss does not fall with {size}"
            raise UserError(f"{what}; check the columns, or add runs that differ more in {size}")
    if not np.isfinite(best.frontier(table.flops)).all():
        what = f"no fit: loss {table.loss.min():.3g} to {table.loss.max():.3g} gives constants that no number can hold"
        raise UserError(f"{what}; check the columns, or leave out rows by --drop-highest-loss")
    if not options.samples:
        return best, None
    weights_SR = drawn(len(table), options)
    return best, fit_weighted(table.params, table.tokens, table.loss, weights_SR, best, options.asymmetry)


def approach3(table: Table, options: FitOptions) -> list[Result]:
    """L(N, D) = E + A / N^alpha + B / D^beta of the table. Raises UserError where its rows do not determine it."""
    best, sampled = fit_samples(table, options)
    residuals_R = np.log(best.loss(table.params, table.tokens) / table.loss)
    notes = diverged(table, residuals_R)
    if 1e-3 * table.loss.min() > best.E:
        notes = ("E is 0 within rounding: these runs do not show where the loss levels off", *notes)
    if options.asymmetry != 1:
        notes = (
            f"a prediction above a row costs {options.asymmetry:g} times one below it, also in the objective",
            *notes,
        )
    result = Result(
        method="chinchilla (approach 3)",
        formula="loss = E + A/N^alpha + B/D^beta; N_opt = G (C/6)^a, D_opt = (C/6)^b / G",
        table=table,
        values={name: float(getattr(best, name)) for name in (*NAMES, "objective")},
        intervals=intervals({name: getattr(sampled, name) for name in NAMES}) if sampled else {},
        samples=options.samples,
        notes=notes,
        residuals=residuals_R,
        lack_of_fit=lack_of_fit(table, residuals_R, constants=5),
        held_out=_held_out(table, best, options),
        converted=_converted(table, best, sampled, options),
        fit=best,
        sampled=sampled,
    )
    return [result]


def _held_out(table: Table, near: ChinchillaFit, options: FitOptions) -> tuple[HeldOut, ...]:
    """The errors on the rows of each budget of the fit of lower budgets, on the most tokens of the fit of fewer, and on
    the rows that the user holds out of the fit of all others."""
    parts = [(f"C of {low:.3g}", table.budget < low, table.budget == low) for low in np.unique(table.budget)]
    most_R = table.tokens > 0.95 * table.tokens.max()
    parts.append((f"D of {table.tokens[most_R].min():.3g} and more", ~most_R, most_R))
    usable = [part for part in parts if determined(table.params[part[1]], table.tokens[part[1]])]
    out = []
    if usable:
        weights_SR = np.array([fitted_R for _, fitted_R, _ in usable], np.float64)
        fits = fit_weighted(table.params, table.tokens, table.loss, weights_SR, near, options.asymmetry)
        out = [
            _errors(what, int(fitted_R.sum()), fits.take(index), table.take(tested_R))
            for index, (what, fitted_R, tested_R) in enumerate(usable)
        ]
    if options.held_out is not None:
        out.append(_errors("--hold-out", len(table), near, options.held_out))
    return tuple(out)


def _errors(what: str, fitted: int, one: ChinchillaFit, tested: Table) -> HeldOut:
    with np.errstate(over="ignore"):
        error_R = one.loss(tested.params, tested.tokens) / tested.loss - 1
    return HeldOut(what, fitted, len(tested), float(error_R.mean()), float(error_R[np.abs(error_R).argmax()]))


def _converted(
    table: Table, best: ChinchillaFit, sampled: ChinchillaFit | None, options: FitOptions
) -> tuple[dict[str, Any], ...]:
    """The exponent a of N_opt ~ C^a in the other conventions that the table has.

    Where its C is not 6 N D but 6 N D k N^g (attention, embeddings), least loss at given C is at N ~ C^(beta / (alpha +
    beta (1 + g))), with the power that fits its rows. Parameters counted otherwise are fitted anew.
    """
    found: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    how = counting(table)
    if how != Counting():
        ratio_R = table.flops / (6 * table.params * table.tokens)
        low, high = ratio_R.min(), ratio_R.max()
        a, *a_S = (how.exponent(fit) for fit in (best, sampled) if fit is not None)
        what = f"C is the column {table.columns['flops']!r}, {low:.3g} to {high:.3g} times 6 N D"
        found.append((what, a, a_S[0] if a_S else None))
    other_R = table.extra.get("params_other")
    if other_R is not None and np.all(other_R > 0):
        one, samples = fit_samples(dataclasses.replace(table, params=other_R), options)
        low, high = (other_R / table.params).min(), (other_R / table.params).max()
        what = f"N is the column {table.columns['params_other']!r}, {low:.3g} to {high:.3g} times "
        found.append((f"{what}{table.columns['params']!r}; C = 6 N D", one.a, None if samples is None else samples.a))
    return tuple(
        {"convention": what, "a": float(a), "interval": None if a_S is None else interval(a_S)}
        for what, a, a_S in found
    )
