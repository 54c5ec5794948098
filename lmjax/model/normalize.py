"""LayerNorm and RMSNorm as one function with its own gradient: float32 inside, statistics in one pass over the input.

E[x^2] - E[x]^2 cancels where a row's mean is large beside its deviation. Of float32 rows LayerNorm therefore takes the
statistics of the row less the mean of its first SAMPLE elements, which changes no deviation. That mean is at most
sqrt(D / SAMPLE) deviations from the row's own, whatever the row holds, which bounds what cancels (Chan, Golub & LeVeque
1983, section 3, on shifted data). bfloat16 rows are taken as they are: their elements are rounded to 1/256 of the mean,
which costs more than what cancels in float32 as long as the mean is below some 100 deviations; beyond, little but
rounding is left of the row. The shift would cost the planned steps up to 3.5% of their cycles.

What the backward pass needs beside the input are two numbers a row. They have a name, so that a remat policy can keep
them instead of reading the input once more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.model.remat import STATISTICS

SAMPLE = 128

Residuals = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


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
    wide = x.astype(jnp.float32)
    mean, variance = _moments(x) if centered else (jnp.zeros(x.shape[:-1]), jnp.mean(wide * wide, -1))
    rate = jax.lax.rsqrt(variance + eps)
    mean, rate = checkpoint_name(mean, STATISTICS), checkpoint_name(rate, STATISTICS)
    y = _standard(wide, mean, rate) * _over(scale, wide)
    if bias is not None:
        y += _over(bias, wide)
    y = y.astype(x.dtype)
    return jax.lax.optimization_barrier(y) if materialize else y, (x, scale, bias, mean, rate)


def _backward(
    eps: float, centered: bool, materialize: bool, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, scale, bias, mean, rate = residuals
    gradient = jax.lax.optimization_barrier(gradient) if materialize else gradient
    wide = gradient.astype(jnp.float32)
    standard = _standard(x.astype(jnp.float32), mean, rate)
    rows = tuple(range(x.ndim - 1))
    inner = wide * _over(scale, wide)
    along = jnp.mean(inner * standard, -1, keepdims=True)
    dx = inner - standard * along
    if centered:
        dx -= jnp.mean(inner, -1, keepdims=True)
    dx = (dx * rate[..., None]).astype(x.dtype)
    return dx, (wide * standard).sum(rows), None if bias is None else wide.sum(rows)


normalize.defvjp(_forward, _backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every row, in float32."""
    if jnp.finfo(x.dtype).bits < 32:
        wide = x.astype(jnp.float32)
        mean, square = jnp.mean(wide, -1), jnp.mean(wide * wide, -1)
        return mean, jnp.maximum(square - mean * mean, 0.0)
    shift = jnp.mean(x[..., :SAMPLE].astype(jnp.float32), -1)  # cut first: of a wide copy the TPU would keep all
    away = x.astype(jnp.float32) - shift[..., None]
    mean, square = jnp.mean(away, -1), jnp.mean(away * away, -1)
    return shift + mean, jnp.maximum(square - mean * mean, 0.0)


def _standard(wide: jax.Array, mean: jax.Array, rate: jax.Array) -> jax.Array:
    return (wide - mean[..., None]) * rate[..., None]


def _over(vector_D: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector_D, like.shape)
