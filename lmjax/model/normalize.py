"""LayerNorm and RMSNorm as one function with its own gradient: float32 inside, statistics in one pass over the input.

E[x^2] - E[x]^2 cancels where a row's mean is large beside its deviation. LayerNorm therefore takes the statistics of
the row less the mean of its first SAMPLE elements, which changes no deviation. That mean is at most sqrt(D / SAMPLE)
deviations from the row's own, whatever the row holds, which bounds what cancels (Chan, Golub & LeVeque 1983, section 3,
on shifted data), and a TPU reads the elements without another pass: they fill one register's width.

What the backward pass needs beside the input are three numbers a row: the shift, the mean of the shifted row and
1/deviation. They have a name, so that a remat policy can keep them instead of reading the input once more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.model.remat import STATISTICS

SAMPLE = 128

Statistics = tuple[jax.Array, jax.Array, jax.Array]  # of each row: the shift, the mean beyond it, 1/deviation
Residuals = tuple[jax.Array, jax.Array, jax.Array | None, Statistics]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
    x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, eps: float, centered: bool, materialize: bool
) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) x scale + bias over the last axis, in the dtype of x.

    Not `centered`, the mean is taken to be 0: RMSNorm (Zhang & Sennrich 2019); then there is no bias. `materialize`
    writes the result and the incoming gradient to memory instead of working them out again inside of every matrix
    product that reads them, which is what the TPU compiler otherwise does.
    """
    return _forward(x, scale_D, bias_D, eps, centered, materialize)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, centered: bool, materialize: bool
) -> tuple[jax.Array, Residuals]:
    statistics = _statistics(x, eps, centered)
    standard = _standard(x, statistics, centered)
    y = standard * _over(scale, standard)
    if bias is not None:
        y += _over(bias, standard)
    y = y.astype(x.dtype)
    return jax.lax.optimization_barrier(y) if materialize else y, (x, scale, bias, statistics)


def _backward(
    eps: float, centered: bool, materialize: bool, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, scale, bias, statistics = residuals
    gradient = jax.lax.optimization_barrier(gradient) if materialize else gradient
    wide = gradient.astype(jnp.float32)
    standard = _standard(x, statistics, centered)
    rows = tuple(range(x.ndim - 1))
    inner = wide * _over(scale, wide)
    along = jnp.mean(inner * standard, -1, keepdims=True)
    dx = inner - standard * along
    if centered:
        dx -= jnp.mean(inner, -1, keepdims=True)
    dx = (dx * statistics[2][..., None]).astype(x.dtype)
    return dx, (wide * standard).sum(rows), None if bias is None else wide.sum(rows)


normalize.defvjp(_forward, _backward)


def _statistics(x: jax.Array, eps: float, centered: bool) -> Statistics:
    """Not `centered`, the shift and the mean are 0."""
    wide = x.astype(jnp.float32)
    if not centered:
        zero = jnp.zeros(x.shape[:-1], jnp.float32)
        return zero, zero, checkpoint_name(jax.lax.rsqrt(jnp.mean(wide * wide, -1) + eps), STATISTICS)
    # the barrier: it is worked out once, not again for every tile of the row
    shift = jax.lax.optimization_barrier(jnp.mean(x[..., :SAMPLE].astype(jnp.float32), -1))
    wide = wide - shift[..., None]
    mean, square = jnp.mean(wide, -1), jnp.mean(wide * wide, -1)
    rate = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps)
    shift, mean, rate = (checkpoint_name(each, STATISTICS) for each in (shift, mean, rate))
    return shift, mean, rate


def _standard(x: jax.Array, statistics: Statistics, centered: bool) -> jax.Array:
    """(x - mean) / deviation in float32. The shift goes first: added to the mean it would be rounded as x's mean is."""
    shift, mean, rate = statistics
    wide = x.astype(jnp.float32)
    if centered:
        wide = (wide - shift[..., None]) - mean[..., None]
    return wide * rate[..., None]


def _over(vector_D: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector_D, like.shape)
