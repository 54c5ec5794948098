"""Positions inside attention: rotary embeddings and T5's relative bias."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

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


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclass(frozen=True)
class DistanceBias:
    """A bias of the scores of T queries and S keys that depends on the distance, key - query, alone.

    `values` are [H, T + S - 1] float32: of distances in a row, the last query's to the first key before all others.
    """

    values: jax.Array

    def scores(self, T: int, S: int) -> jax.Array:
        """The bias of every pair, [1, H, T, S]."""
        return self.block(T, S, 0, T, 0, S)[None]

    def block(self, T: int, S: int, start: int, stop: int, first: int, last: int) -> jax.Array:
        """The bias of queries [start, stop) of T and of keys [first, last) of S, [H, stop - start, last - first]."""
        W = self.values.shape[1]
        if W != T + S - 1:
            raise ValueError(f"a bias of {W} distances for {T} queries and {S} keys: expected {T + S - 1}")
        low, width = T - stop + first, (stop - start) + (last - first) - 1
        return _skewed(self.values[:, low : low + width], stop - start)


def _skewed(values_HW: jax.Array, queries: int) -> jax.Array:
    """[H, queries, keys] whose entry (t, s) is values[s - t + queries - 1], without a gather, for its gradient's sake.

    Rows of W + 1 values in a row, read as rows of W, begin one place later each.
    """
    H, W = values_HW.shape
    rows = jnp.broadcast_to(jnp.pad(values_HW, ((0, 0), (0, 1)))[:, None], (H, queries, W + 1))
    return rows.reshape(H, -1)[:, : queries * W].reshape(H, queries, W)[:, :, queries - 1 :]


class RelativeBias(nn.Module):
    """One learned bias per head and bucket; all layers add it to their scores."""

    settings: PositionSettings
    heads: int
    bidirectional: bool
    std: float

    @nn.compact
    def __call__(self, query_positions_T: jax.Array, key_positions_S: jax.Array) -> DistanceBias:
        """The bias of queries and keys at consecutive positions."""
        buckets = self.settings.relative_buckets
        table = self.param("table", normal_init(self.std, ("positions", "heads")), (buckets, self.heads), jnp.float32)
        count = query_positions_T.size + key_positions_S.size - 1
        distance_W = key_positions_S[0] - query_positions_T[-1] + jnp.arange(count)
        bucket_W = relative_bucket(distance_W, buckets, self.settings.relative_max_distance, self.bidirectional)
        return DistanceBias(table[bucket_W].T)
