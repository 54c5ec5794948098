"""An encoder-decoder as plain functions: `inputs` are encoded once, `tokens` are read or written with a cache. T5."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import INPUT_POSITIONS, INPUT_SEGMENTS, INPUTS, POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.model.blocks import BlockContext, LayerCache, key_value_dense, keys_and_values
from lmjax.model.cache import Cache, empty_cache
from lmjax.model.masks import Mask
from lmjax.model.outputs import Outputs
from lmjax.model.stack import LayerLoop, unstack_layers
from lmjax.model.transformer import Params, Transformer
from lmjax.model.two_stacks import TwoStacks

STACKS = ("encoder", "decoder")


class EncoderDecoder(Transformer):
    """A model whose decoder attends to what its encoder makes of `inputs`, segment by segment of the same number."""

    @property
    def _masks_segments(self) -> bool:
        return True  # padding of the inputs is hidden by segments alone

    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        memory = self.encode(params, batch, rng)
        tokens, positions, segments = batch[TOKENS], batch[POSITIONS], batch[SEGMENTS]
        mask = Mask(True, None, segments, segments)
        across = Mask(False, None, segments, batch[INPUT_SEGMENTS])
        module = self._module(self._implementation_of(tokens.shape[1], batch[INPUTS].shape[1]))
        args = (tokens, positions, mask, memory, across, rng, None)
        return Outputs(module.apply({"params": params}, *args, method="decode")[0], {})

    def encode(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Any:
        """The memory [B, S, D] of `inputs` with `input_positions` and `input_segments`."""
        segments = batch[INPUT_SEGMENTS]
        mask = Mask(False, None, segments, segments)
        module = self._module(self.implementation(batch[INPUTS].shape[1]))
        args = (batch[INPUTS], batch[INPUT_POSITIONS], mask, rng)
        memory: Any = module.apply({"params": params}, *args, method="encode")
        return memory

    def start_cache(self, params: Params, batch: Batch, length: int) -> Cache:
        """A cache of `length` slots for the decoder, which holds the keys and values of the encoded inputs."""
        memory = self.encode(params, batch)
        empty = empty_cache(self, memory.shape[0], length)
        context = self._context("einsum")
        decoder = params["decoder"]
        layers = []
        for number, layer in enumerate(empty.layers):
            kernels = self._cross_parameters(decoder, number)
            project = functools.partial(_memory_cache, context, memory)
            kept = jax.vmap(project)(kernels) if self.compute.scan_layers else project(kernels)
            layers.append(LayerCache(layer.keys, layer.values, kept))
        return Cache(tuple(layers), empty.segments, batch[INPUT_SEGMENTS])

    def _cross_parameters(self, decoder: Params, number: int) -> Params:
        """Of the keys and values of a layer, or where layers are stacked of that block of all periods."""
        period = len(self.settings.attention.pattern)
        place = "periods" if self.compute.scan_layers else f"period_{number // period}"
        parameters: Params = decoder[place][f"block_{number % period}"]["cross_attention"]["key_value"]
        return parameters

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Cache]:
        """As `LanguageModel.extend`, with a cache from `start_cache`: the encoder does not run again."""
        slot = jnp.asarray(slot, jnp.int32)
        segments_BS = jax.lax.dynamic_update_slice(cache.segments, segments_BT, (0, slot))
        mask = Mask(True, None, segments_BT, segments_BS, offset=slot)
        across = Mask(False, None, segments_BT, cache.memory_segments)
        args = (tokens_BT, positions_BT, mask, None, across, None, cache.layers)
        layers: Any
        x, layers = self._module("einsum").apply({"params": params}, *args, method="decode")
        return x, Cache(layers, segments_BS, cache.memory_segments)

    def unstacked(self, params: Params) -> Params:
        return params | {name: unstack_layers(params[name]) for name in STACKS}

    def _implementation_of(self, length: int, inputs: int) -> str:
        """That of the decoder, whose queries meet keys of two lengths."""
        own, across = self.implementation(length), self.implementation(inputs)
        return own if own == across else "einsum"

    def _module(self, attention: str) -> TwoStacks:
        return TwoStacks(self._context(attention), self.layer_loop)

    def _boxed(self, rng: jax.Array, *, scan_layers: bool) -> Any:
        context = BlockContext(self.settings, self.dtype, False, "einsum")
        tokens = jnp.zeros((1, 1), jnp.int32)
        return TwoStacks(context, LayerLoop(scan_layers)).init(rng, tokens)["params"]


def _memory_cache(context: BlockContext, memory_BSD: jax.Array, parameters: Params) -> LayerCache:
    pair = key_value_dense(context).apply({"params": parameters}, memory_BSD)
    return LayerCache.of(*keys_and_values(context, pair))
