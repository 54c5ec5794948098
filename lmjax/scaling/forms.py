"""Laws that are sums of terms: log L = power(eta) * log(sum over f of exp(c_f + terms_f(eta))), fitted robustly.

In: such a form, log losses, what its terms read, and weights of the rows. Out: the parameters theta = (c, eta) of least
summed Huber loss for every weighting. At given exponents eta the coefficients exp(c) are those of linear least squares
of relative errors, so starts are found on a grid of eta alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.scaling.minimize import Minimum, float64, minimize

SAMPLE_STARTS = 2  # grid points of each bootstrap sample, beside the fit of all rows


def _one(eta: Any) -> Any:
    return jnp.ones_like(eta[0])


@dataclass(frozen=True)
class Form:
    """`terms(eta [K], *data) -> [F, R]`: the log of each term without its coefficient; `power(eta)`: of their sum.

    Both are functions of a module, since programs are cached by them.
    """

    exponents: int  # K
    terms: Callable[..., Any]
    power: Callable[[Any], Any] = _one

    def residuals(self, theta: jax.Array, log_L: jax.Array, *data: jax.Array) -> jax.Array:
        """log(prediction / loss) [R] at theta = (c [F], eta [K])."""
        c, eta = theta[: -self.exponents], theta[-self.exponents :]
        return self.power(eta) * jax.nn.logsumexp(c[:, None] + self.terms(eta, *data), axis=0) - log_L


def fit_form(
    form: Form,
    log_L: np.ndarray,
    data: tuple[np.ndarray, ...],
    grid_GK: np.ndarray,
    weights_SR: np.ndarray,
    *,
    near: np.ndarray | None = None,
    asymmetry: float = 1.0,
) -> Minimum:
    """The minimum of each weighting: from every grid point, or where theta `near` [F + K] is given from it and the best
    points. `asymmetry` is that of `minimize`."""
    most = len(grid_GK) if near is None else SAMPLE_STARTS
    starts_SMP = _starts(form, log_L, data, grid_GK, weights_SR)[:, :most]
    if near is not None:
        first = np.broadcast_to(near, (len(weights_SR), 1, len(near)))
        starts_SMP = np.concatenate([first, starts_SMP], axis=1)
    return minimize(form.residuals, starts_SMP, (log_L, *data), weights_SR, asymmetry)


def residuals_of(form: Form, theta: np.ndarray, log_L: np.ndarray, data: tuple[np.ndarray, ...]) -> np.ndarray:
    """log(prediction / loss) [R] at theta."""
    with float64():
        return np.asarray(form.residuals(*map(jnp.asarray, (theta, log_L, *data))))


def grid(*axes: np.ndarray) -> np.ndarray:
    """Every combination [G, K] of the values of K axes."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def _starts(
    form: Form, log_L: np.ndarray, data: tuple[np.ndarray, ...], grid_GK: np.ndarray, weights_SR: np.ndarray
) -> np.ndarray:
    """The starts [S, G, F + K] of each weighting, the best first; a negative coefficient is replaced by a small one."""
    with float64():
        terms_GFR = np.asarray(jax.vmap(lambda eta: form.terms(eta, *data))(grid_GK))
        power_G = np.asarray(jax.vmap(form.power)(grid_GK))
    logs_GFR = terms_GFR - (log_L / power_G[:, None])[:, None]
    X_RGF = np.exp(np.clip(logs_GFR, -100, 100)).transpose(2, 0, 1)  # their squares must not overflow
    R, G, F = X_RGF.shape
    normal_SGFF = (weights_SR @ np.einsum("rgf,rgh->rgfh", X_RGF, X_RGF).reshape(R, -1)).reshape(-1, G, F, F)
    right_SGF = (weights_SR @ X_RGF.reshape(R, -1)).reshape(-1, G, F)
    ridge = 1e-12 * np.trace(normal_SGFF, axis1=2, axis2=3)[..., None, None] * np.eye(F)
    linear_SGF = np.linalg.solve(normal_SGFF + ridge, right_SGF[..., None])[..., 0]
    linear_SGF = np.maximum(linear_SGF, 1e-2 / X_RGF.max(axis=0))
    fitted_SG = np.einsum("sgf,sgfh,sgh->sg", linear_SGF, normal_SGFF, linear_SGF)
    error_SG = fitted_SG - 2 * np.einsum("sgf,sgf->sg", linear_SGF, right_SGF) + weights_SR.sum(axis=1)[:, None]
    order_SG = np.argsort(error_SG * power_G**2, axis=1)
    log_linear = np.log(np.take_along_axis(linear_SGF, order_SG[..., None], axis=1))
    return np.concatenate([log_linear, grid_GK[order_SG]], axis=-1)
