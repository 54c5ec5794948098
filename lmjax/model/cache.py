"""The keys and values that decoding keeps."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lmjax.model.blocks import LayerCache
from lmjax.model.stack import LayerCaches
from lmjax.model.transformer import Transformer


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "segments", "memory_segments"], meta_fields=[]
)
@dataclass(frozen=True)
class Cache:
    """The layers' keys and values of S slots, and the slots' segments [B, S]; 0 is an empty slot.

    Of an encoder-decoder also the segments [B, M] of the encoded inputs.
    """

    layers: LayerCaches
    segments: jax.Array
    memory_segments: jax.Array | None = None

    def repeated(self, times: int) -> Cache:
        """A cache with every row so many times."""
        rows = self.segments.shape[0]

        def repeat(kept: jax.Array) -> jax.Array:
            lead, own = kept.shape[: -3 - (rows > 1)], kept.shape[-3:]
            copies = jnp.repeat(kept.reshape(*lead, rows, *own), times, axis=len(lead))
            return copies if rows * times > 1 else kept

        segments, memory = jax.tree.map(lambda of: jnp.repeat(of, times, axis=0), (self.segments, self.memory_segments))
        return Cache(jax.tree.map(repeat, self.layers), segments, memory)


def empty_cache(model: Transformer, rows: int, length: int) -> Cache:
    """A cache of `length` slots for `rows` rows of a decoder, in the compute dtype."""
    settings, dtype = model.settings, model.dtype
    shape: tuple[int, ...] = (settings.kv_heads, length, settings.head_dim)
    shape = shape if rows == 1 else (rows, *shape)
    count = settings.layers
    if model.compute.scan_layers:
        count = len(settings.attention.pattern)
        shape = (settings.layers // count, *shape)
    layers = (LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(count))
    return Cache(tuple(layers), jnp.zeros((rows, length), jnp.int32))
