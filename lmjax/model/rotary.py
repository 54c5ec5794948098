"""Rotary positions: the frequencies of a head's pairs, plain or scaled for longer texts, and the rotation by them."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.settings import ModelSettings, RotaryScaling


class Rotation(NamedTuple):
    """How queries and keys of a layer turn: radians per position of each pair, [K/2] float32, and a factor of both."""

    frequencies: jax.Array
    amplitude: float = 1.0


def plain_rotation(base: float, head_dim: int) -> Rotation:
    """Pair i turns by base^(-2i / K) (Su et al. 2021, section 3.2)."""
    half = head_dim // 2
    return Rotation(base ** (-jnp.arange(half, dtype=jnp.float32) / half))


def rotation_of(settings: ModelSettings, kind: str) -> Rotation | None:
    """That of a layer of a kind of the attention pattern; None where the layer does not rotate."""
    positions = settings.positions
    if positions.kind != "rotary" or kind == "nope":
        return None
    if kind == "banded" and positions.banded_rotary_base is not None:
        return plain_rotation(positions.banded_rotary_base, settings.head_dim)
    plain, scaling = plain_rotation(positions.rotary_base, settings.head_dim), positions.rotary_scaling
    if scaling.kind == "linear":
        return Rotation(plain.frequencies / scaling.factor)
    original = scaling.original_context or settings.context
    if scaling.kind == "llama3":
        return Rotation(_llama3(plain.frequencies, scaling, original))
    if scaling.kind == "yarn":
        return Rotation(_yarn(plain.frequencies, scaling, original, positions.rotary_base), scaling.amplitude)
    return plain  # "dynamic", up to the context


def _llama3(frequency_K: jax.Array, scaling: RotaryScaling, original: int) -> jax.Array:
    """By the turns that a pair makes over the original context: few are scaled, many left, those between blended."""
    turns_K = original * frequency_K / (2 * math.pi)
    kept_K = (turns_K - scaling.slow_turns) / (scaling.fast_turns - scaling.slow_turns)
    return _blend(frequency_K, scaling.factor, jnp.clip(kept_K, 0.0, 1.0))


def _yarn(frequency_K: jax.Array, scaling: RotaryScaling, original: int, base: float) -> jax.Array:
    """The blend runs evenly over pairs, from the last that turns fast to the first that turns slowly."""
    half = frequency_K.shape[0]

    def pair(turns: float) -> float:
        """The pair, counted in fractions, that turns so often over the original context."""
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(base)

    first, last = pair(scaling.fast_turns), pair(scaling.slow_turns)
    if scaling.whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    last = last if last > first else first + 1e-3
    scaled_K = jnp.clip((jnp.arange(half, dtype=jnp.float32) - first) / (last - first), 0.0, 1.0)
    return _blend(frequency_K, scaling.factor, 1.0 - scaled_K)


def _blend(frequency_K: jax.Array, factor: float, kept_K: jax.Array) -> jax.Array:
    return frequency_K * kept_K + frequency_K / factor * (1.0 - kept_K)


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, rotation: Rotation, by_product: bool = False) -> jax.Array:
    """Each pair of a head turned by position x its frequency; element i is paired with i + K/2, as in Llama.

    Angles are float32. `by_product` is for the TPU, whose registers half a head fills by half: the other element of
    each pair then comes of a product with a matrix of 0, 1 and -1, which is exact, and all else has whole heads.
    """
    frequency_K, amplitude = rotation
    if by_product:
        frequency_K = jnp.tile(frequency_K, 2)
    angle_BT1K = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None, :]
    sin, cos = jnp.sin(angle_BT1K), jnp.cos(angle_BT1K)
    if amplitude != 1.0:
        sin, cos = sin * amplitude, cos * amplitude
    if by_product:
        other = _others(x_BTHK).astype(jnp.float32)
        return (x_BTHK.astype(jnp.float32) * cos + other * sin).astype(x_BTHK.dtype)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    sin, cos = jnp.broadcast_to(sin, first.shape), jnp.broadcast_to(cos, first.shape)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def _others(x_BTHK: jax.Array) -> jax.Array:
    """Element i + K/2 of each head, negated, in the place of i, and element i in that of i + K/2.

    The product has a batch axis, of size 1, so that remat policies that keep products do not keep this one.
    """
    half = x_BTHK.shape[-1] // 2
    places = jnp.arange(half)
    swap_KK = jnp.zeros((2 * half, 2 * half), x_BTHK.dtype)
    swap_KK = swap_KK.at[places + half, places].set(-1).at[places, places + half].set(1)
    exact = jax.lax.Precision.HIGHEST  # of float32, which the TPU would otherwise round
    return jnp.einsum("zbthk,zkl->zbthl", x_BTHK[None], swap_KK[None], precision=exact)[0]
