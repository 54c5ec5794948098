"""The keys that a query may see: causality, a local band and segments, one description for all attention kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # the score of a masked key: finite, so that a query without visible keys gives no NaN


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_segments", "key_segments", "offset"],
    meta_fields=["causal", "band"],
)
@dataclass(frozen=True)
class Mask:
    """Query t has index offset + t among the keys; it sees keys of its segment.

    `causal`: only keys up to its index. `band`: only the last `band` keys up to its index (and, if not causal, as many
    after it). Segments: [B, T] and [B, S] int32, where 0 is padding, which no query sees; None: one segment.
    """

    causal: bool
    band: int | None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    offset: jax.Array | int = 0

    def with_band(self, band: int | None) -> Mask:
        return Mask(self.causal, band, self.query_segments, self.key_segments, self.offset)

    def visible(self, queries: int, keys: int) -> jax.Array:
        """Boolean [1 or B, 1, queries, keys]: True where the query may see the key."""
        distance = jnp.arange(queries)[:, None] + self.offset - jnp.arange(keys)[None, :]
        near = jnp.ones((queries, keys), bool)
        if self.causal:
            near &= distance >= 0
        if self.band is not None:
            near &= jnp.abs(distance) < self.band
        if self.query_segments is None or self.key_segments is None:
            return near[None, None]
        same = (self.query_segments[:, :, None] == self.key_segments[:, None, :]) & (self.key_segments != 0)[:, None, :]
        return (near[None] & same)[:, None]
