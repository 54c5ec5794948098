"""A language model as plain functions: a decoder, with `extend` for decoding with a cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.model.cache import Cache, empty_cache
from lmjax.model.masks import Mask
from lmjax.model.transformer import OneStackModel, Params


class LanguageModel(OneStackModel):
    """A decoder, whose tokens see no later one."""

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache of `length` slots for `rows` rows, in the compute dtype."""
        return empty_cache(self, rows, length)

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Cache]:
        """Reads T more tokens into the slots from `slot` on; returns their hidden states [B, T, D] and the cache.

        Rows whose prompts are shorter are padded on the left with segment 0, so that one slot serves all rows. Raises
        UserError for a model whose attention is not causal: its earlier hidden states would change with every token.
        """
        self.require_causal("decoding with a cache")
        slot = jnp.asarray(slot, jnp.int32)
        segments_BS = jax.lax.dynamic_update_slice(cache.segments, segments_BT, (0, slot))
        mask = Mask(self.settings.attention.causal, None, segments_BT, segments_BS, offset=slot)
        module = self._module("einsum")
        layers: Any
        x, layers = module.apply({"params": params}, tokens_BT, positions_BT, None, mask, None, cache.layers)
        return x, Cache(layers, segments_BS)

    def hidden_after(self, params: Params, batch: Batch, prompt: int, group: int) -> jax.Array:
        """Hidden states [B, T - prompt + 1, D] from the last token of the prompts on, each of which is read once.

        The first `prompt` columns, padded on the left, are the same in each `group` of consecutive rows. The scores of
        the attention exist at once, as in `extend`.
        """
        tokens, positions, segments = (batch[name] for name in (TOKENS, POSITIONS, SEGMENTS))
        B, T = tokens.shape
        first, rest = (slice(None, None, group), slice(None, prompt)), (slice(None), slice(prompt, None))
        cache = self.empty_cache(B // group, T)
        last_BPD, cache = self.extend(params, cache, tokens[first], positions[first], segments[first], 0)
        cache = cache.repeated(group)
        after_BND, _ = self.extend(params, cache, tokens[rest], positions[rest], segments[rest], prompt)
        return jnp.concatenate([jnp.repeat(last_BPD[:, -1:], group, axis=0), after_BND], axis=1)
