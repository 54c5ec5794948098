"""Least squares of polynomials and power laws, for many weightings of the points at once."""

from __future__ import annotations

import numpy as np


def polynomials(x_R: np.ndarray, y_R: np.ndarray, W_SR: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients [degree + 1, S] of weighted least squares, the constant first; NaN where they are not determined."""
    X_RP = x_R[:, None] ** np.arange(degree + 1)
    normal_SPP = np.einsum("sr,rp,rq->spq", W_SR, X_RP, X_RP)
    right_SP = np.einsum("sr,rp,r->sp", W_SR, X_RP, y_R)
    different = np.array([len(np.unique(x_R[w > 0])) for w in W_SR])
    known = different > degree
    normal_SPP[~known] = np.eye(degree + 1)
    out_SP = np.linalg.solve(normal_SPP, right_SP[..., None])[..., 0]
    out_SP[~known] = np.nan
    return out_SP.T


def power_laws(flops_B: np.ndarray, log_N_SB: np.ndarray, log_D_SB: np.ndarray) -> dict[str, np.ndarray]:
    """a, k_N, b and k_D [S] of N = k_N C^a and D = k_D C^b: least squares of logs, without budgets that are NaN."""
    log_C = np.log(flops_B)
    out: dict[str, np.ndarray] = {}
    for exponent, factor, log_SB in (("a", "k_N", log_N_SB), ("b", "k_D", log_D_SB)):
        finite_SB = np.isfinite(log_SB)
        fits = [
            polynomials(log_C, np.where(known, y, 0.0), known[None].astype(np.float64), 1)[:, 0]
            for known, y in zip(finite_SB, log_SB, strict=True)
        ]
        intercept, slope = np.array(fits).T
        out |= {exponent: slope, factor: np.exp(intercept)}
    return out
