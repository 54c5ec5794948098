"""The stack of blocks of a decoder or an encoder: scanned or unrolled, with or without remat, and its final norm."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.blocks import Block, BlockContext, LayerCache, Surroundings
from lmjax.model.layers import Norm
from lmjax.model.masks import Mask
from lmjax.model.positions import DistanceBias, RelativeBias
from lmjax.model.remat import remat_policy
from lmjax.model.sharding import constrain

# One for each layer in turn, or, where layers are scanned, one for each of a period, stacked over the periods.
LayerCaches = tuple[LayerCache, ...]

# The layers of a period that are rematerialised as one: all of their arrays exist at once in the backward pass.
MOST_AT_ONCE = 2


class Period(nn.Module):
    """The blocks of one period of the attention pattern; `first` is the index of the first layer."""

    context: BlockContext
    block: Any = Block  # or a rematerialised one

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        first: jax.Array | int,
        caches: LayerCaches | None,
        key: jax.Array | None,
        around: Surroundings,
    ) -> tuple[jax.Array, LayerCaches | None]:
        updated = []
        for i, kind in enumerate(self.context.settings.attention.pattern):
            layer_key = None if key is None else jax.random.fold_in(key, first + i)
            cache = None if caches is None else caches[i]
            x, cache = self.block(self.context, kind, name=f"block_{i}")(x, cache, layer_key, around)
            if cache is not None:
                updated.append(cache)
        return x, tuple(updated) or None


@dataclass(frozen=True)
class LayerLoop:
    """How a stack goes through its layers. None of it changes what is computed."""

    stacked: bool = True  # parameters, on a new first axis
    unrolled: bool = False  # stacked layers: each is compiled apart, where one body of a loop would serve for all
    remat: str = "none"


class Stack(nn.Module):
    """From the residual stream [B, T, D] to hidden states [B, T, D] after the final norm.

    `memory` [B, M, D] is the source of the blocks' cross-attention, under `memory_mask`, without which they have none;
    it is None where the caches hold its keys and values. New keys and values are written to the caches at the mask's
    offset. `layers` is None for as many as the settings'.
    """

    context: BlockContext
    loop: LayerLoop
    layers: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        key: jax.Array | None,
        caches: LayerCaches | None = None,
        memory: jax.Array | None = None,
        memory_mask: Mask | None = None,
    ) -> tuple[jax.Array, LayerCaches | None]:
        norm = self.context.settings.norm
        around = Surroundings(mask, positions_BT, self._bias(x.shape[1], mask, caches), memory, memory_mask)
        x, caches = self._layers(x, caches, key, around)
        if norm.final:
            x = Norm(norm, self.context.dtype, self.context.tpu, name="final_norm")(x)
        return constrain(x, "batch", "time", "act_embed"), caches

    def _bias(self, T: int, mask: Mask, caches: LayerCaches | None) -> DistanceBias | None:
        settings = self.context.settings
        if settings.positions.kind != "relative":
            return None
        S = T if caches is None else caches[0].keys.shape[-2]
        bias = RelativeBias(
            settings.positions, settings.attention.heads, not mask.causal, self.context.table_std, name="relative_bias"
        )
        return bias(jnp.arange(T) + mask.offset, jnp.arange(S))

    def _layers(
        self, x: jax.Array, caches: LayerCaches | None, key: jax.Array | None, around: Surroundings
    ) -> tuple[jax.Array, LayerCaches | None]:
        period = len(self.context.settings.attention.pattern)
        repeats = (self.layers or self.context.settings.layers) // period
        cell: Any = Period
        block: Any = Block
        loop = self.loop
        if loop.remat != "none":
            # In a loop the compiler cannot merge the recomputation with the forward pass: nothing has to prevent it.
            apart = loop.unrolled or not loop.stacked or repeats == 1
            again = functools.partial(nn.remat, policy=remat_policy(loop.remat), prevent_cse=apart)
            cell, block = (again(Period), Block) if period <= MOST_AT_ONCE else (Period, again(Block))
        if not loop.stacked:
            updated: LayerCaches = ()
            for first in range(0, repeats * period, period):
                cache = None if caches is None else caches[first : first + period]
                x, cache = cell(self.context, block, name=f"period_{first // period}")(x, first, cache, key, around)
                updated += cache or ()
            return x, updated or None
        scanned = nn.scan(
            cell,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=repeats,
            unroll=repeats if loop.unrolled else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(self.context, block, name="periods")(x, jnp.arange(repeats) * period, caches, key, around)


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
