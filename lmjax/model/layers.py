"""Dense projections, norms, dropout and activations: the components of a block.

Parameters are float32 and carry logical axis names; arithmetic is in the compute dtype, norms in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.normalize import normalize
from lmjax.model.sharding import constrain
from lmjax.settings import NormSettings

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def normal_init(std: float, axes: tuple[str | None, ...]) -> Callable[..., Any]:
    """A normal initialiser of standard deviation `std`; the parameter is annotated with the logical `axes`."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class Dense(nn.Module):
    """y[..., *out] = x[..., *in] @ kernel[*in, *out] + bias[*out].

    `axes` names every kernel axis; the last `len(features)` of them are the output's. `flatten` merges the leading axes
    of x: XLA's CPU backend then computes the kernel's gradient twice as fast. On a mesh they must not be merged,
    because they are sharded differently.

    For the TPU: `split` computes one product for each entry of the output's first axis and returns a tuple, so that
    each is contiguous in memory; `bias_product` sums the bias's gradient on the matrix units.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    bias: bool
    dtype: jnp.dtype
    flatten: bool
    split: bool = False
    bias_product: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        contracted = len(self.axes) - len(self.features)
        inner = x.shape[x.ndim - contracted :]
        init = normal_init(self.std, self.axes)
        kernel: Any = self.param("kernel", init, (*inner, *self.features), jnp.float32)
        kernel = kernel.astype(self.dtype)
        bias: Any = None
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[contracted:])
            bias = self.param("bias", zeros, self.features, jnp.float32)
            bias = bias.astype(self.dtype)
        x = x.astype(self.dtype)
        if not self.split:
            return self._product(x, _gathered(kernel, self.axes, contracted), bias, contracted)
        axes = self.axes[:contracted] + self.axes[contracted + 1 :]
        kernels = (jax.lax.index_in_dim(kernel, i, contracted, keepdims=False) for i in range(self.features[0]))
        return tuple(
            self._product(x, _gathered(part, axes, contracted), None if bias is None else bias[i], contracted)
            for i, part in enumerate(kernels)
        )

    def _product(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, contracted: int) -> jax.Array:
        lead, inner = x.shape[: x.ndim - contracted], x.shape[x.ndim - contracted :]
        if self.flatten:
            rows = x.reshape(math.prod(lead), math.prod(inner))
            y = (rows @ kernel.reshape(rows.shape[1], -1)).reshape(*lead, *kernel.shape[contracted:])
        else:
            y = jnp.tensordot(x, kernel, axes=contracted)
        if bias is None:
            return y
        return _add_bias(y, bias) if self.bias_product else y + jnp.broadcast_to(bias, y.shape)


def _gathered(kernel: jax.Array, axes: tuple[str | None, ...], contracted: int) -> jax.Array:
    """The kernel, stored in shards on a mesh, gathered along "embed" for its product.

    Without the constraints the compiler may instead sum over the sharded width and exchange activations. The first
    constraint keeps the gradient sharded. Where several axes are contracted, the gathered axis is moved to the front:
    the TPU then needs no copy of the gathered kernel.
    """
    kernel = constrain(kernel, *axes)
    gathered = ["act_embed" if name == "embed" else name for name in axes]
    if contracted == 1:
        return constrain(kernel, *gathered)
    return jnp.moveaxis(constrain(jnp.moveaxis(kernel, -1, 0), gathered[-1], *gathered[:-1]), 0, -1)


@jax.custom_vjp
def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias; the bias's gradient is a product with two rows of ones. XLA turns a product with one row into a sum."""
    return y + jnp.broadcast_to(bias, y.shape)


def _add_bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _add_bias(y, bias), bias


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    lead = gradient.shape[: gradient.ndim - bias.ndim]
    axes = tuple(range(len(lead)))
    ones = jnp.ones((2, *lead), gradient.dtype)
    over = (tuple(axis + 1 for axis in axes), axes)
    sums = jnp.tensordot(ones, gradient, axes=over, preferred_element_type=jnp.float32)
    return gradient, sums[0].astype(bias.dtype)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32; the result has the compute dtype.

    `materialize` is for the TPU; see `lmjax.model.normalize`.
    """

    settings: NormSettings
    dtype: jnp.dtype
    materialize: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        centered = self.settings.kind == "layernorm"
        offset = self.settings.unit_offset
        scale, bias = NormParameters(centered and self.settings.bias, offset, name="norm")(x.shape[-1])
        scale = 1.0 + scale if offset else scale
        return normalize(x.astype(self.dtype), scale, bias, self.settings.eps, centered, self.materialize)


class NormParameters(nn.Module):
    """The scale of a norm, or what it is above 1, and its bias if it has one."""

    bias: bool
    offset: bool

    @nn.compact
    def __call__(self, width: int) -> tuple[Any, Any]:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        scale = self.param("scale", zeros if self.offset else ones, (width,), jnp.float32)
        return scale, self.param("bias", zeros, (width,), jnp.float32) if self.bias else None


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap x tanh(x / cap), within (-cap, cap); x itself without a cap (Gemma 2, 2024, section 2)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def before_cap(capped: jax.Array, cap: float | None, gradient: jax.Array) -> jax.Array:
    """The gradient of x from that of `soft_cap(x, cap)`, which is `capped`; where that is -inf since, the same."""
    if cap is None:
        return gradient
    return gradient * (1.0 - (jnp.where(jnp.isfinite(capped), capped, 0.0) / cap) ** 2)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, site: int) -> jax.Array:
    """x with a fraction `rate` of its entries zeroed and the rest scaled up; unchanged when `key` is None.

    The mask depends on the key and the `site` only, not on the sharding of x (partitionable threefry).
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))
