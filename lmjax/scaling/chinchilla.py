"""Chinchilla's formula L(N, D) = E + A / N^alpha + B / D^beta, fitted to log losses.

In: parameters N, tokens D and losses of runs. Out: the five constants, the exponents of the compute-optimal N and D,
and the same for bootstrap samples. arXiv:2203.15556, section 3.3; the sum of the Huber losses and the grid of starts
follow arXiv:2404.10102, whose refit of the published runs this reproduces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.forms import Form, fit_form, grid

GRID = grid(*2 * [np.geomspace(0.05, 1.5, 12)])  # of alpha and beta, where fits start
FEWEST_ROWS, FEWEST_SIZES = 6, 3


@dataclass(frozen=True)
class ChinchillaFit:
    """The constants of L(N, D) = E + A / N^alpha + B / D^beta: loss in nats (or what the table has), N in parameters,
    D in tokens. Each is a float, or an array [S] of bootstrap samples; `objective` is the sum of the Huber losses."""

    E: np.ndarray
    log_A: np.ndarray  # noqa: N815 - a log, since samples may have coefficients beyond float64
    log_B: np.ndarray  # noqa: N815
    alpha: np.ndarray
    beta: np.ndarray
    objective: np.ndarray

    @property
    def A(self) -> np.ndarray:  # noqa: N802 - the paper's name
        """Of A / N^alpha."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_A)

    @property
    def B(self) -> np.ndarray:  # noqa: N802 - the paper's name
        """Of B / D^beta."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_B)

    @property
    def a(self) -> np.ndarray:
        """The exponent of the compute-optimal parameters: N_opt ~ C^a, with C = 6 N D."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> np.ndarray:
        """The exponent of the compute-optimal tokens: D_opt ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> np.ndarray:  # noqa: N802 - the paper's name
        """N_opt = G (C / 6)^a, and D_opt = (C / 6)^b / G."""
        with np.errstate(invalid="ignore"):  # a sample whose exponents differ in sign has no optimum
            return np.exp((np.log(self.alpha / self.beta) + self.log_A - self.log_B) / (self.alpha + self.beta))

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """The loss of models of `params` parameters trained on `tokens` tokens."""
        with np.errstate(over="ignore"):
            by_size = np.exp(self.log_A - self.alpha * np.log(params))
            return self.E + by_size + np.exp(self.log_B - self.beta * np.log(tokens))

    def optimum(self, flops: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The parameters and tokens of least loss at C = 6 N D = `flops`."""
        params = self.G * (flops / 6) ** self.a
        return params, flops / 6 / params

    def frontier(self, flops: np.ndarray | float) -> np.ndarray:
        """The loss of the optimum at C = 6 N D = `flops`: E + K (C / 6)^-(alpha beta / (alpha + beta))."""
        return self.E + np.exp(self._log_k - self._gamma * np.log(np.asarray(flops) / 6))

    def flops_of(self, loss: np.ndarray | float) -> np.ndarray:
        """The FLOPs at which the optimum has this loss; NaN where it never does."""
        with np.errstate(invalid="ignore", over="ignore"):
            return 6 * np.exp((self._log_k - np.log(loss - self.E)) / self._gamma)

    @property
    def _gamma(self) -> np.ndarray:
        return self.alpha * self.a

    @property
    def _log_k(self) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):  # as of G
            log_G = np.log(self.G)
            return np.logaddexp(self.log_A - self.alpha * log_G, self.log_B + self.beta * log_G)

    def take(self, index: Any) -> ChinchillaFit:
        """The fit of sample `index`, or of several."""
        return ChinchillaFit(*(value[index] for value in vars(self).values()))


def fit(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, asymmetry: float = 1.0) -> ChinchillaFit:
    """The fit of runs [R]. Raises UserError for fewer than six runs, or three different sizes or token counts."""
    require_varied(params, tokens)
    return _fitted(params, tokens, loss, np.ones((1, len(loss))), None, asymmetry).take(0)


def fit_weighted(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weights_SR: np.ndarray,
    near: ChinchillaFit,
    asymmetry: float = 1.0,
) -> ChinchillaFit:
    """The fits of S weightings of the runs, started at the fit `near` and at the best points of the grid."""
    return _fitted(params, tokens, loss, weights_SR, near, asymmetry)


def require_varied(params: np.ndarray, tokens: np.ndarray) -> None:
    """Raises UserError where rows do not determine five constants."""
    if len(params) < FEWEST_ROWS:
        expected = f"expected at least {FEWEST_ROWS} for the five constants of E + A/N^alpha + B/D^beta"
        raise UserError(f"too few points: {len(params)} runs, {expected}; add runs")
    for name, values in (("parameters", params), ("tokens", tokens)):
        different = len(np.unique(values))
        if different < FEWEST_SIZES:
            what = f"the runs have {different} different number{'s' * (different > 1)} of {name}"
            raise UserError(f"equal sizes: {what}; expected at least {FEWEST_SIZES}; add runs of other sizes")


def determined(params: np.ndarray, tokens: np.ndarray) -> bool:
    """Whether rows determine the five constants."""
    try:
        require_varied(params, tokens)
    except UserError:
        return False
    return True


def _terms(eta: Any, log_N: Any, log_D: Any) -> Any:
    return jnp.stack([-eta[0] * log_N, -eta[1] * log_D, jnp.zeros_like(log_N)])


FORM = Form(2, _terms)


def _fitted(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weights_SR: np.ndarray,
    near: ChinchillaFit | None,
    asymmetry: float,
) -> ChinchillaFit:
    log_N, log_D = np.log(params), np.log(tokens)
    n, d = log_N.mean(), log_D.mean()
    first = None
    if near is not None:
        coefficients = [near.log_A - near.alpha * n, near.log_B - near.beta * d, np.log(near.E)]
        first = np.array([*coefficients, near.alpha, near.beta], np.float64)
    found = fit_form(FORM, np.log(loss), (log_N - n, log_D - d), GRID, weights_SR, near=first, asymmetry=asymmetry)
    a, b, e, alpha, beta = found.theta.T
    return ChinchillaFit(np.exp(e), a + alpha * n, b + beta * d, alpha, beta, found.objective)
