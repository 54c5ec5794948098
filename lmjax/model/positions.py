"""Positions inside attention: rotary embeddings and T5's relative bias."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.layers import normal_init
from lmjax.settings import PositionSettings


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, section 3.2); element i is paired with i + K/2, as in Llama.

    Angles are float32: pair i of a head is rotated by position x base^(-2i/K).
    """
    half = x_BTHK.shape[-1] // 2
    frequency_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None, :]
    sin, cos = jnp.sin(angle_BT1K), jnp.cos(angle_BT1K)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    sin, cos = jnp.broadcast_to(sin, first.shape), jnp.broadcast_to(cos, first.shape)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def relative_bucket(distance: jax.Array, buckets: int, max_distance: int, bidirectional: bool) -> jax.Array:
    """T5's bucket of each distance (key position - query position); Raffel et al. 2020, section 2.1.

    Half of the buckets have one distance each; those of the other half grow logarithmically up to `max_distance`. A
    bidirectional bias has as many buckets for later keys as for earlier ones.
    """
    bucket = jnp.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        bucket += (distance > 0).astype(distance.dtype) * buckets
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(distance.dtype), buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """One learned bias per head and bucket, as [1, H, T, S]; all layers add it to their scores."""

    settings: PositionSettings
    heads: int
    bidirectional: bool
    std: float

    @nn.compact
    def __call__(self, query_positions_T: jax.Array, key_positions_S: jax.Array) -> jax.Array:
        buckets = self.settings.relative_buckets
        table = self.param("table", normal_init(self.std, ("positions", "heads")), (buckets, self.heads), jnp.float32)
        distance_TS = key_positions_S[None, :] - query_positions_T[:, None]
        bucket_TS = relative_bucket(distance_TS, buckets, self.settings.relative_max_distance, self.bidirectional)
        return jnp.transpose(table[bucket_TS], (2, 0, 1))[None]
