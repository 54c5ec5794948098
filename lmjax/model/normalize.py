"""LayerNorm and RMSNorm as one function with its own gradient: float32 inside, statistics in one pass over the input.

E[x^2] - E[x]^2 cancels where a row's mean is large beside its deviation. LayerNorm therefore takes the statistics of
the row less its own first element, x_0, which changes no deviation: as x_0 is one of D elements, its distance from the
mean is at most sqrt(D - 1) deviations, so that what cancels is bounded whatever the row holds (Chan, Golub & LeVeque
1983, section 3, on shifted data).

What the backward pass needs beside the input are two numbers a row, the mean of the shifted row and 1/deviation. They
have a name, so that a remat policy can keep them instead of reading the input once more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.model.remat import STATISTICS

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
    wide = _shifted(x, centered)
    square = jnp.mean(wide * wide, -1)
    mean = jnp.mean(wide, -1) if centered else jnp.zeros_like(square)
    rate = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps)
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
    standard = _standard(_shifted(x, centered), mean, rate)
    rows = tuple(range(x.ndim - 1))
    inner = wide * _over(scale, wide)
    along = jnp.mean(inner * standard, -1, keepdims=True)
    dx = inner - standard * along
    if centered:
        dx -= jnp.mean(inner, -1, keepdims=True)
    dx = (dx * rate[..., None]).astype(x.dtype)
    return dx, (wide * standard).sum(rows), None if bias is None else wide.sum(rows)


normalize.defvjp(_forward, _backward)


def _shifted(x: jax.Array, centered: bool) -> jax.Array:
    """x in float32; `centered`, each row less its first element."""
    wide = x.astype(jnp.float32)
    return wide - wide[..., :1] if centered else wide


def _standard(wide: jax.Array, mean: jax.Array, rate: jax.Array) -> jax.Array:
    return (wide - mean[..., None]) * rate[..., None]


def _over(vector_D: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector_D, like.shape)
