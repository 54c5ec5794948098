"""Chinchilla's approach 1: which size has the lowest loss at each compute, and power laws through these sizes.

In: a table whose sizes were trained on several numbers of tokens each, so that a size is a curve of loss over compute.
Out: the exponents a and b of N_opt ~ C^a and D_opt ~ C^b. arXiv:2203.15556, section 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions, intervals
from lmjax.scaling.counting import own_convention
from lmjax.scaling.power_laws import power_laws
from lmjax.scaling.result import Result
from lmjax.scaling.table import Table

FEWEST_SIZES = 3
COMPUTES = 1500  # of the envelope, log-spaced, as in the paper


class _Curves(NamedTuple):
    """Of K sizes [K], the smallest first, at G computes: log loss and log tokens [K, G], NaN beyond a size's runs."""

    log_flops: np.ndarray
    log_size: np.ndarray
    log_loss: np.ndarray
    log_tokens: np.ndarray


def approach1(table: Table, options: FitOptions) -> list[Result]:
    """The power laws of the envelope. Raises UserError where fewer than three sizes are lowest between two others."""
    curves = _curves(table)
    K = len(curves.log_size)
    best_G = _lowest(curves, np.ones(K, bool))
    on_envelope = np.unique(best_G[best_G >= 0])
    if len(on_envelope) < FEWEST_SIZES:
        what = f"{len(on_envelope)} of {K} sizes have the lowest loss between a smaller and a larger one"
        raise UserError(
            f"no fit: {what}, expected {FEWEST_SIZES}; add sizes, or train them on fewer and on more tokens"
        )
    known = best_G >= 0
    values = _power_laws(curves, best_G[None])
    ends = {}
    if options.samples:
        counts_SK = np.random.default_rng(options.seed).multinomial(K, np.full(K, 1 / K), size=options.samples)
        ends = intervals(_power_laws(curves, np.stack([_lowest(curves, count > 0) for count in counts_SK])))
    notes = [f"{len(on_envelope)} of {K} sizes are on the envelope; samples draw sizes, each with all of its runs"]
    if not known.all():
        share = 100 * (1 - known.mean())
        notes.append(
            f"{share:.0f}% of the computes are left out: the lowest loss is at the smallest or largest size there"
        )
    middle = [int(np.flatnonzero(best_G == size).mean()) for size in on_envelope]
    points = [
        (curves.log_flops[g], curves.log_size[k], curves.log_tokens[k, g], curves.log_loss[k, g])
        for g, k in zip(middle, on_envelope, strict=True)
    ]
    result = Result(
        method="envelope (approach 1)",
        formula="N_opt = k_N C^a, D_opt = k_D C^b through the sizes of lowest loss at each C",
        table=table,
        values={name: float(value[0]) for name, value in values.items()},
        intervals=ends,
        samples=options.samples,
        convention=own_convention(table),
        notes=tuple(notes),
        points=np.exp(points),
    )
    return [result]


def _curves(table: Table) -> _Curves:
    """Loss over compute of each size with runs of different compute; of runs with equal compute, the best counts."""
    parts = []
    for size in np.unique(table.params):
        rows = table.take(table.params == size)
        order = np.lexsort((rows.loss, rows.flops))
        flops, first = np.unique(rows.flops[order], return_index=True)
        if len(flops) > 1:
            chosen = order[first]
            parts.append((np.log(size), np.log(flops), np.log(rows.loss[chosen]), np.log(rows.tokens[chosen])))
    if len(parts) < FEWEST_SIZES:
        what = f"{len(parts)} sizes have runs of several numbers of tokens, expected at least {FEWEST_SIZES}"
        raise UserError(f"too few points: {what}; train each size on several numbers of tokens, or use approach 3")
    low = sorted(part[1][0] for part in parts)[FEWEST_SIZES - 1]
    high = sorted(part[1][-1] for part in parts)[-FEWEST_SIZES]
    log_C = np.linspace(low, max(low, high), COMPUTES)
    loss_KG, tokens_KG = (
        np.array([np.interp(log_C, part[1], part[which], left=np.nan, right=np.nan) for part in parts])
        for which in (2, 3)
    )
    return _Curves(log_C, np.array([part[0] for part in parts]), loss_KG, tokens_KG)


def _lowest(curves: _Curves, present_K: np.ndarray) -> np.ndarray:
    """The size [G] of lowest loss at each compute; -1 where no smaller or no larger one reaches that compute."""
    known_KG = np.isfinite(curves.log_loss) & present_K[:, None]
    best_G = np.where(known_KG, curves.log_loss, np.inf).argmin(axis=0)
    smallest_G = known_KG.argmax(axis=0)
    largest_G = len(known_KG) - 1 - known_KG[::-1].argmax(axis=0)
    return np.where((best_G > smallest_G) & (best_G < largest_G), best_G, -1)


def _power_laws(curves: _Curves, best_SG: np.ndarray) -> dict[str, np.ndarray]:
    known_SG = best_SG >= 0
    columns = np.arange(best_SG.shape[1])
    log_N_SG = np.where(known_SG, curves.log_size[best_SG], np.nan)
    return power_laws(
        np.exp(curves.log_flops), log_N_SG, np.where(known_SG, curves.log_tokens[best_SG, columns], np.nan)
    )
