"""Dense projections, norms, dropout and activations: the pieces a block is made of.

Parameters are float32 and carry logical axis names; arithmetic is in the compute dtype, norms in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.settings import NormSettings

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def normal_init(std: float, axes: tuple[str, ...]) -> Callable[..., Any]:
    """A normal initialiser of standard deviation `std` whose parameter carries the logical `axes`."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class Dense(nn.Module):
    """y[..., *out] = x[..., *in] @ kernel[*in, *out] + bias[*out].

    `axes` names every kernel axis; the last `len(features)` of them are the output's. With `flatten` the leading axes
    of x become one: XLA's CPU backend then computes the kernel's gradient twice as fast. On a mesh they must stay
    apart, because they are sharded differently.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    bias: bool
    dtype: jnp.dtype
    flatten: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        contracted = len(self.axes) - len(self.features)
        inner = x.shape[x.ndim - contracted :]
        lead = x.shape[: x.ndim - contracted]
        init = normal_init(self.std, self.axes)
        kernel: Any = self.param("kernel", init, (*inner, *self.features), jnp.float32)
        kernel = kernel.astype(self.dtype)
        x = x.astype(self.dtype)
        if self.flatten:
            rows = x.reshape(math.prod(lead), math.prod(inner))
            y = (rows @ kernel.reshape(rows.shape[1], -1)).reshape(*lead, *self.features)
        else:
            y = jnp.tensordot(x, kernel, axes=contracted)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[contracted:])
            bias: Any = self.param("bias", zeros, self.features, jnp.float32)
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, in float32 whatever comes in; the result has the compute dtype."""

    settings: NormSettings
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        eps = self.settings.eps
        wide = x.astype(jnp.float32)
        if self.settings.kind == "rmsnorm":
            norm: nn.Module = nn.RMSNorm(epsilon=eps, dtype=jnp.float32, scale_init=ones, name="norm")
        else:
            bias = self.settings.bias
            norm = nn.LayerNorm(
                epsilon=eps, dtype=jnp.float32, scale_init=ones, bias_init=zeros, use_bias=bias, name="norm"
            )
        return norm(wide).astype(self.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, site: int) -> jax.Array:
    """x with a fraction `rate` of its entries zeroed and the rest scaled up; unchanged when `key` is None.

    The mask depends on the key and the `site` alone, never on how x is sharded (partitionable threefry).
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))
