"""LayerNorm and RMSNorm as one function with a custom gradient: in float32, with statistics in one pass over the input.

E[x^2] - E[x]^2 loses precision by cancellation if a row's mean is large compared with its deviation. For float32 rows
LayerNorm therefore computes the statistics of the row minus the mean of its first SAMPLE elements, which has the same
deviation. That mean differs from the row's mean by at most sqrt(D / SAMPLE) deviations, for any row, which bounds the
cancellation (Chan, Golub & LeVeque 1983, section 3, on shifted data). bfloat16 rows are not shifted: their elements are
rounded to 1/256 of the mean, an error larger than that of the cancellation in float32 if the mean is below about 100
deviations; for larger means the rounding dominates the row. The shift would cost the planned steps up to 3.5% of their
cycles.

The backward pass needs two numbers per row in addition to the input. They have a name, so that a remat policy can keep
them; otherwise the backward pass reads the input once more.
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

    If not `centered`, the mean is replaced by 0 and there is no bias: RMSNorm (Zhang & Sennrich 2019). `materialize`
    writes the result and the incoming gradient to memory; otherwise the TPU compiler computes them again in every
    matrix product that reads them.
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
    shift = jnp.mean(x[..., :SAMPLE].astype(jnp.float32), -1)  # sliced before the cast: else the TPU keeps a float32 x
    shifted = x.astype(jnp.float32) - shift[..., None]
    mean, square = jnp.mean(shifted, -1), jnp.mean(shifted * shifted, -1)
    return shift + mean, jnp.maximum(square - mean * mean, 0.0)


def _standard(wide: jax.Array, mean: jax.Array, rate: jax.Array) -> jax.Array:
    return (wide - mean[..., None]) * rate[..., None]


def _over(vector_D: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector_D, like.shape)
