"""How well a fit describes its rows: noise and lack of fit, rows that may have diverged."""

from __future__ import annotations

import numpy as np

from lmjax.scaling.table import Table, repeats

FAR, FAR_LOG = 10.0, 0.1  # times the median residual, and at least: rows so far above the fit may have diverged


def lack_of_fit(table: Table, residuals_R: np.ndarray, constants: int) -> dict[str, float]:
    """The standard deviation of the log residuals, and their means over the runs of least and most compute, which a fit
    that extrapolates well leaves near 0. Where rows repeat a (N, D): their own deviation, and the F of the lack of fit
    against it with its p (Draper & Smith, Applied Regression Analysis, section 2.1)."""
    order = np.argsort(table.flops, kind="stable")
    part = max(1, len(order) // 4)
    out = {
        "residual_sd": float(residuals_R.std()),
        "mean_residual_least_compute": float(residuals_R[order[:part]].mean()),
        "mean_residual_most_compute": float(residuals_R[order[-part:]].mean()),
    }
    group = repeats(table)
    groups = group.max() + 1
    pure, lack = len(group) - groups, groups - constants
    if pure > 0 and lack > 0:
        counts = np.bincount(group)
        means = np.bincount(group, residuals_R) / counts
        noise = float(np.sum((residuals_R - means[group]) ** 2) / pure)
        out["repeated_rows_sd"] = noise**0.5
        if noise > 0:
            from scipy.stats import f

            out["F"] = float(counts @ means**2 / lack / noise)
            out["p"] = float(f.sf(out["F"], lack, pure))
    return out


def diverged(table: Table, residuals_R: np.ndarray) -> tuple[str, ...]:
    """A note that names the rows whose loss is far above the fit."""
    limit = max(FAR * float(np.median(np.abs(residuals_R))), FAR_LOG)
    (far,) = np.nonzero(-residuals_R > limit)
    if not len(far):
        return ()
    names = "; ".join(f"{table.places[index]} (loss {table.loss[index]:.4g})" for index in far[:5])
    what = f"{len(far)} row{'s lie' if len(far) > 1 else ' lies'} far above the fit and may have diverged: {names}"
    return (f"{what}; --drop-highest-loss or --where leaves them out",)
