"""The decoder-only Transformer: embeddings, a stack of blocks, a final norm. GPT-1, GPT-2, GPT-3 and Llama shapes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.blocks import Block, BlockContext, LayerCache, Surroundings
from lmjax.model.layers import Norm, dropout, normal_init
from lmjax.model.masks import Mask
from lmjax.model.positions import RelativeBias
from lmjax.model.remat import remat_policy
from lmjax.model.sharding import constrain

# One for each layer in turn, or, where layers are scanned, one for each of a period, stacked over the periods.
LayerCaches = tuple[LayerCache, ...]

EMBEDDING_SITE = 1_000_000  # where the embeddings' dropout is drawn; layers draw at their own number


class Period(nn.Module):
    """The blocks of one period of the attention pattern; `first` is the number of the first layer."""

    context: BlockContext

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        first: jax.Array | int,
        caches: LayerCaches | None,
        key: jax.Array | None,
        around: Surroundings,
    ) -> tuple[jax.Array, LayerCaches | None]:
        filled = []
        for i, kind in enumerate(self.context.settings.attention.pattern):
            layer_key = None if key is None else jax.random.fold_in(key, first + i)
            cache = None if caches is None else caches[i]
            x, cache = Block(self.context, kind, name=f"block_{i}")(x, cache, layer_key, around)
            if cache is not None:
                filled.append(cache)
        return x, tuple(filled) or None


def look_up(table_ND: jax.Array, places_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table, [B, T, D], cut along their width as the table is.

    The residual stream is cut along its rows instead. Without this step between, the compiler makes the result whole
    on every device of a mesh that cuts rows over data as well as fsdp; with it, it exchanges the parts.
    """
    places_BT = constrain(places_BT, "lookup_batch", "time")
    return constrain(jnp.take(table_ND, places_BT, axis=0).astype(dtype), "lookup_batch", "time", "embed")


class GPT(nn.Module):
    """Tokens [B, T] in, hidden states [B, T, D] after the final norm out; the head is applied by the loss."""

    context: BlockContext
    scan_layers: bool
    remat: str

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        key: jax.Array | None,
        caches: LayerCaches | None,
    ) -> tuple[jax.Array, LayerCaches | None]:
        settings, dtype = self.context.settings, self.context.dtype
        shape = (settings.vocab_size, settings.width)
        token_table = self.param("tokens", normal_init(settings.init_std, ("vocab", "embed")), shape, jnp.float32)
        # The constraint keeps the gradient of this use apart from the head's, where that is the same table: the TPU
        # compiler would otherwise scatter one into the other, and sum both over devices instead of their sum.
        token_table = constrain(token_table, "vocab", "embed")
        x = look_up(token_table, tokens_BT, dtype)
        if settings.positions.kind == "learned":
            shape = (settings.context, settings.width)
            table = self.param("positions", normal_init(settings.init_std, ("positions", "embed")), shape, jnp.float32)
            x = x + look_up(table, positions_BT, dtype)
        if not settings.tied_head:
            init = normal_init(settings.init_std, ("head_vocab", "embed"))
            self.param("head", init, (settings.vocab_size, settings.width), jnp.float32)
        x = constrain(x, "batch", "time", "act_embed")
        x = dropout(x, settings.dropout, key, EMBEDDING_SITE)

        around = Surroundings(mask, positions_BT, self._bias(tokens_BT.shape[1], mask, caches))
        x, caches = self._layers(x, caches, key, around)
        if settings.norm.final:
            x = Norm(settings.norm, dtype, self.context.tpu, name="final_norm")(x)
        return x, caches

    def _bias(self, T: int, mask: Mask, caches: LayerCaches | None) -> jax.Array | None:
        settings = self.context.settings
        if settings.positions.kind != "relative":
            return None
        S = T if caches is None else caches[0].keys.shape[-2]
        bias = RelativeBias(
            settings.positions, settings.attention.heads, not mask.causal, settings.init_std, name="relative_bias"
        )
        return bias(jnp.arange(T) + mask.offset, jnp.arange(S))

    def _layers(
        self, x: jax.Array, caches: LayerCaches | None, key: jax.Array | None, around: Surroundings
    ) -> tuple[jax.Array, LayerCaches | None]:
        period = len(self.context.settings.attention.pattern)
        repeats = self.context.settings.layers // period
        cell: Any = Period
        if self.remat != "none":
            # Under scan the recomputation cannot be merged with the forward pass, so nothing has to be prevented.
            cell = nn.remat(Period, policy=remat_policy(self.remat), prevent_cse=not self.scan_layers)
        if not self.scan_layers:
            filled: LayerCaches = ()
            for first in range(0, repeats * period, period):
                own = None if caches is None else caches[first : first + period]
                x, own = cell(self.context, name=f"period_{first // period}")(x, first, own, key, around)
                filled += own or ()
            return x, filled or None
        scanned = nn.scan(
            cell,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=repeats,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(self.context, name="periods")(x, jnp.arange(repeats) * period, caches, key, around)


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Unscanned parameters (`period_0`, `period_1`, ...) as scanned ones (`periods`, stacked on a new first axis)."""
    names = sorted((name for name in params if name.startswith("period_")), key=lambda name: int(name[7:]))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"periods": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    rest = {name: value for name, value in params.items() if name != "periods"}
    repeats = jax.tree.leaves(params["periods"])[0].shape[0]
    return rest | {f"period_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["periods"]) for i in range(repeats)}
