"""Positions as a bias of the scores: T5's relative bias."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.layers import normal_init
from lmjax.settings import PositionSettings

ROWS = 16  # queries whose biases are sliced from one another
LARGEST_BAND = 256  # queries whose biases are made at once


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
        size = min(T, LARGEST_BAND)
        band_HRC, starts = self.band(T, S, size, 1 - T, S), range(0, T, size)
        blocks = [band_HRC[:, : min(size, T - start), T - 1 - start :][:, :, :S] for start in starts]
        return jnp.concatenate(blocks, axis=1)[None]

    def band(self, T: int, S: int, size: int, low: int, high: int) -> jax.Array:
        """[H, size, high - low], whose entry (r, c) is the bias of the distance low + c - r.

        It has the bias of any `size` queries from t on and of the keys from t + low up to t + high: what a block of
        queries needs is a part of it, whatever block of T queries and S keys that is.
        """
        W = self.values.shape[1]
        if W != T + S - 1:
            raise ValueError(f"a bias of {W} distances for {T} queries and {S} keys: expected {T + S - 1}")
        padded = jnp.pad(self.values, ((0, 0), (size, size)))  # for the distances of no pair
        return _skewed(padded[:, low + T : high + T + size - 1], size)


def _skewed(values_HW: jax.Array, queries: int) -> jax.Array:
    """[H, queries, keys] whose entry (t, s) is values[s - t + queries - 1].

    Made of slices in two steps, of 1 and of ROWS places, as gathers and odd reshapes are slow on TPUs, gradients too.
    """
    rows = min(queries, ROWS)
    extra = -queries % rows
    values_HW = jnp.pad(values_HW, ((0, 0), (extra, 0)))
    total, W = queries + extra, values_HW.shape[1]
    width, keys = W - rows + 1, W - total + 1
    near_HRC = jnp.stack([values_HW[:, rows - 1 - i :][:, :width] for i in range(rows)], axis=1)
    far = [near_HRC[:, :, total - rows - i :][:, :, :keys] for i in range(0, total, rows)]
    return jnp.concatenate(far, axis=1)[:, :queries]


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
