"""Minimizes sums of Huber losses over a few parameters, for many starts and many weightings of the rows at once.

In: a function from parameters to the residuals of all rows, starts, and weights of the rows. Out: for every weighting
the best minimum over its starts. Everything is float64 on the CPU; `jax.vmap` runs over starts and weightings, so that
a thousand bootstrap samples are one program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DELTA = 1e-3  # where the Huber loss of a log residual turns linear (arXiv:2203.15556, section 3.3)
ROUNDS = 3  # restarts of BFGS, each with a fresh estimate of the curvature
EVALUATIONS = 250  # of one round
CHUNK = 4_096  # problems that run beside each other: one slow problem delays only its own chunk
ARMIJO, WOLFE = 1e-4, 0.9
SHRINKS = 40  # halvings of a step before a line search gives up

Residuals = Callable[..., jax.Array]  # (theta [P], *data) -> residuals [R]


class Minimum(NamedTuple):
    """The best parameters [S, P] and objectives [S] of S weightings, in the units of the residuals' parameters."""

    theta: np.ndarray
    objective: np.ndarray


class _State(NamedTuple):
    x: jax.Array
    f: jax.Array
    g: jax.Array
    inverse: jax.Array  # of the Hessian, as BFGS estimates it
    direction: jax.Array
    step: jax.Array
    low: jax.Array
    high: jax.Array
    tries: jax.Array
    stalled: jax.Array  # consecutive steps that gained next to nothing
    evaluations: jax.Array


def minimize(
    residuals: Residuals,
    starts_SKP: np.ndarray,
    data: tuple[np.ndarray, ...],
    weights_SR: np.ndarray,
    asymmetry: float = 1.0,
) -> Minimum:
    """The minimum over theta of sum_r weight_r huber(residuals(theta, *data)_r), for S weightings from K starts each.

    residuals: differentiable by jax; it must be a module's function, since programs are cached by it.
    starts_SKP: starts of the parameters. data: arrays that `residuals` receives. weights_SR: at least 0; a bootstrap
    sample is the number of times that each row was drawn. asymmetry: how many times more a positive residual, which is
    a prediction above the row, costs than a negative one.
    """
    S, K, P = starts_SKP.shape
    theta_MP, objective_M = starts_SKP.reshape(S * K, P).copy(), np.empty(S * K)
    rows = np.repeat(np.arange(S), K)
    with float64():
        for begin in range(0, S * K, CHUNK):
            part = slice(begin, begin + CHUNK)
            x, f = theta_MP[part], objective_M[part]
            for _ in range(ROUNDS):
                x, f = map(np.asarray, _descend(residuals, x, weights_SR[rows[part]], data, asymmetry))
            theta_MP[part], objective_M[part] = x, f
    objective_SK = np.where(np.isfinite(objective_M), objective_M, np.inf).reshape(S, K)
    best_S = objective_SK.argmin(axis=1)
    return Minimum(theta_MP.reshape(S, K, P)[np.arange(S), best_S], objective_SK[np.arange(S), best_S])


@contextmanager
def float64() -> Iterator[None]:
    """A context in which jax computes in float64 on the CPU, whatever the process uses otherwise."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def huber(residuals_R: jax.Array) -> jax.Array:
    """The Huber loss of each residual: r^2 / 2 up to DELTA, then linear."""
    size_R = jnp.abs(residuals_R)
    return jnp.where(size_R <= DELTA, 0.5 * residuals_R**2, DELTA * (size_R - 0.5 * DELTA))


@partial(jax.jit, static_argnums=0)
def _descend(
    residuals: Residuals, x_MP: jax.Array, weights_MR: jax.Array, data: Any, asymmetry: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One round of BFGS for M problems. Each pass of the loop evaluates every problem once, wherever it is in its
    line search (the bisection for the weak Wolfe conditions of Lewis and Overton, which serves nonsmooth losses)."""

    def objective(x: jax.Array, weights: jax.Array) -> jax.Array:
        r = residuals(x, *data)
        return weights @ (huber(r) * jnp.where(r > 0, asymmetry, 1.0))

    value = jax.value_and_grad(objective)

    def begin(x: jax.Array, weights: jax.Array) -> _State:
        f, g = value(x, weights)
        r, jacobian = residuals(x, *data), jax.jacfwd(residuals)(x, *data)
        scale = weights * jnp.where(r > 0, asymmetry, 1.0) * jnp.minimum(1.0, DELTA / jnp.maximum(jnp.abs(r), 1e-300))
        curvature = jacobian.T @ (jacobian * scale[:, None])
        ridge = 1e-12 * jnp.trace(curvature) + 1e-300
        inverse = jnp.linalg.pinv(curvature + ridge * jnp.eye(len(x)), hermitian=True)
        zero = jnp.zeros((), jnp.int32)
        return _State(x, f, g, inverse, -inverse @ g, 1.0 + 0 * f, 0 * f, jnp.inf + 0 * f, zero, zero, zero)

    def active(s: _State) -> jax.Array:
        return (s.stalled < 5) & (s.tries < SHRINKS) & (s.evaluations < EVALUATIONS)

    def body(s: _State, weights: jax.Array) -> _State:
        moved = _advance(s, *value(s.x + s.step * s.direction, weights))
        return jax.tree.map(lambda new, old: jnp.where(active(s), new, old), moved, s)

    states = jax.vmap(begin)(x_MP, weights_MR)
    states = jax.lax.while_loop(lambda s: jax.vmap(active)(s).any(), lambda s: jax.vmap(body)(s, weights_MR), states)
    return states.x, states.f


def _advance(s: _State, f: jax.Array, g: jax.Array) -> _State:
    """The state after the evaluation (f, g) at x + step * direction: the step shrinks, grows or is taken."""
    slope = s.g @ s.direction
    low_enough = jnp.isfinite(f) & jnp.isfinite(g).all() & (f <= s.f + ARMIJO * s.step * slope)
    flat_enough = g @ s.direction >= WOLFE * slope
    taken = low_enough & flat_enough
    low = jnp.where(low_enough, s.step, s.low)
    high = jnp.where(low_enough, s.high, s.step)
    step = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * s.step)

    moved, change = s.step * s.direction, jnp.where(taken, g - s.g, s.g)
    curvature = jnp.where(taken, change @ moved, 1.0)
    left = jnp.eye(len(g)) - jnp.outer(moved, change) / curvature
    updated = left @ s.inverse @ left.T + jnp.outer(moved, moved) / curvature
    inverse = jnp.where(taken & (curvature > 0), updated, s.inverse)
    gain = s.f - f <= 1e-13 * jnp.abs(s.f)
    return _State(
        x=jnp.where(taken, s.x + moved, s.x),
        f=jnp.where(taken, f, s.f),
        g=jnp.where(taken, g, s.g),
        inverse=inverse,
        direction=jnp.where(taken, -inverse @ g, s.direction),
        step=jnp.where(taken, 1.0, step),
        low=jnp.where(taken, 0.0, low),
        high=jnp.where(taken, jnp.inf, high),
        tries=jnp.where(taken, 0, s.tries + 1),
        stalled=jnp.where(taken, jnp.where(gain, s.stalled + 1, 0), s.stalled),
        evaluations=s.evaluations + 1,
    )
