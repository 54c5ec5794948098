"""Which keys a query may see: causality, a local band and segments, described once for every attention kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # the score of a key that is not seen: finite, so that a query that sees nothing gives no NaN


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_segments", "key_segments", "offset"],
    meta_fields=["causal", "band"],
)
@dataclass(frozen=True)
class Mask:
    """Query t stands at index offset + t among the keys; it sees keys of its own segment.

    `causal`: only keys at its own index or before. `band`: only the last `band` keys up to its own (and, when not
    causal, as many after). Segments: [B, T] and [B, S] int32, where 0 is padding that nothing sees; None: all one.
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
        seen = jnp.ones((queries, keys), bool)
        if self.causal:
            seen &= distance >= 0
        if self.band is not None:
            seen &= jnp.abs(distance) < self.band
        if self.query_segments is None or self.key_segments is None:
            return seen[None, None]
        same = (self.query_segments[:, :, None] == self.key_segments[:, None, :]) & (self.key_segments != 0)[:, None, :]
        return (seen[None] & same)[:, None]
