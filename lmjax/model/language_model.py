"""A language model as plain functions: `init`, `hidden`, `logits`, and `extend` for decoding with a cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.errors import require
from lmjax.model.attention import choose
from lmjax.model.blocks import BlockContext, LayerCache
from lmjax.model.decoder import Decoder
from lmjax.model.embeddings import head_table
from lmjax.model.masks import Mask
from lmjax.model.outputs import Outputs
from lmjax.model.remat import OFFLOADED_POLICIES
from lmjax.model.stack import LayerCaches, unstack_layers
from lmjax.settings import ComputeSettings, ModelSettings

Params = dict[str, Any]

LOGITS_AT_ONCE = 2**26  # entries on one device: 256 MiB in float32
LOGITS_IN_CACHE = 2**20  # on a CPU: 4 MiB in float32, so that a chunk's logits stay in the CPU's cache

FEW_ROWS = 16  # up to this number, XLA's CPU backend is faster with the head as left operand, which it does not repack


class Chunking(NamedTuple):
    """How a loss splits its tokens into chunks, so that it never holds all logits.

    With the head's gradient as [V, D], the TPU compiler adds it to the embedding's, where they are one table, before it
    sums over devices. As [D, V], XLA's CPU backend needs no transposed copy of every chunk's dlogits and takes a fifth
    less time.
    """

    tokens: int | None = None  # the most in a chunk on a device; None: as many as have `logits` logits
    logits: int = LOGITS_AT_ONCE
    vocab_last: bool = False  # whether the head's gradient is accumulated as [D, V]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layers", "segments"], meta_fields=[])
@dataclass(frozen=True)
class Cache:
    """The layers' keys and values of S slots, and the slots' segments [B, S]; 0 is an empty slot."""

    layers: LayerCaches
    segments: jax.Array

    def repeated(self, times: int) -> Cache:
        """A cache with every row so many times."""
        rows = self.segments.shape[0]

        def repeat(kept: jax.Array) -> jax.Array:
            lead, own = kept.shape[: -3 - (rows > 1)], kept.shape[-3:]
            copies = jnp.repeat(kept.reshape(*lead, rows, *own), times, axis=len(lead))
            return copies if rows * times > 1 else kept

        return Cache(jax.tree.map(repeat, self.layers), jnp.repeat(self.segments, times, axis=0))


@dataclass(frozen=True)
class LanguageModel:
    """A decoder, or an encoder where attention is not causal, of given shapes.

    It is computed as `compute` says for `platform` ("cpu", "gpu" or "tpu"), which is an argument because a plan
    compiles for devices that are not attached. `segmented` is False where each row is one document with padding at its
    end; attention is then cheaper. Raises UserError when the vocabulary's size is not set, the settings name an
    attention that cannot serve, or a remat policy offloads on a platform without a second memory.
    """

    settings: ModelSettings
    compute: ComputeSettings = ComputeSettings()
    platform: str = "cpu"
    segmented: bool = True

    def __post_init__(self) -> None:
        size = self.settings.vocab_size
        require(size is not None, "model.vocab_size", size, "a number of rows", "set it, or let the tokenizer give it")
        remat = self.compute.remat
        offloads = remat in OFFLOADED_POLICIES and self.platform == "cpu"
        without_offload = remat.removesuffix("_offloaded")
        expected = "a policy that offloads nothing: on a CPU the model is in the host's memory already"
        require(not offloads, "compute.remat", remat, expected, f"use {without_offload!r}")
        self.implementation()

    @property
    def dtype(self) -> jnp.dtype:
        """The compute dtype: bfloat16 where the recipe says so, or by default on TPU and GPU."""
        automatic = "float32" if self.platform == "cpu" else "bfloat16"
        return jnp.dtype(automatic if self.compute.dtype == "auto" else self.compute.dtype)

    @property
    def chunking(self) -> Chunking:
        """The fastest way for a loss to split its tokens on this platform."""
        cpu = self.platform == "cpu"
        return Chunking(self.compute.loss_chunk, LOGITS_IN_CACHE if cpu else LOGITS_AT_ONCE, vocab_last=cpu)

    def implementation(self, sequence_length: int | None = None) -> str:
        """The attention that `hidden` uses for rows of `sequence_length` tokens; see `lmjax.model.attention.choose`."""
        segmented = self._masks_segments
        return choose(self.settings, self.dtype, self.platform, segmented=segmented, sequence_length=sequence_length)

    @property
    def _masks_segments(self) -> bool:
        """A causal token never sees the padding at a row's end; without causality only segments hide it."""
        return self.segmented or not self.settings.attention.causal

    def require_causal(self, use: str) -> None:
        """Raises UserError where tokens see later ones, which what `use` names cannot have."""
        causal = self.settings.attention.causal
        fix = "set it, or use a task for encoders"
        require(causal, "model.attention.causal", causal, f"true, as {use} needs a model that sees no later token", fix)

    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters; their values do not depend on whether layers are scanned."""
        params = nn.meta.unbox(self._boxed(rng, scan_layers=True))
        return params if self.compute.scan_layers else unstack_layers(params)

    def logical_axes(self) -> Any:
        """A tree like the parameters whose leaves are tuples of logical axis names."""
        boxed = jax.eval_shape(functools.partial(self._boxed, scan_layers=self.compute.scan_layers), jax.random.key(0))
        is_box = functools.partial(_is_instance, kind=nn.meta.AxisMetadata)
        return jax.tree.map(lambda leaf: tuple(leaf.names), boxed, is_leaf=is_box)

    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        """Hidden states [B, T, D] after the final norm, in the compute dtype, and the model's auxiliary losses.

        `rng` draws dropout; None means none.
        """
        tokens, positions = batch[TOKENS], batch[POSITIONS]
        segments = batch[SEGMENTS] if self._masks_segments else None
        mask = Mask(self.settings.attention.causal, None, segments, segments)
        module = self._module(self.implementation(tokens.shape[1]))
        x, _ = module.apply({"params": params}, tokens, positions, mask, rng, None)
        return Outputs(x, {})

    def head(self, params: Params) -> jax.Array:
        """The float32 matrix [V, D] that turns hidden states into logits; under muP the table times its multiplier."""
        table, ratio = head_table(self.settings, params), self.settings.base_ratio
        return table if ratio == 1 else table * ratio

    def project(self, params: Params, hidden_BTD: jax.Array, entries: int | None = None) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states.

        `entries` is the tokenizer's size if the table has more rows: the logits of the other rows are -inf.
        """
        logits_BTV = self._products(params, hidden_BTD)
        V = logits_BTV.shape[-1]
        if entries is None or entries >= V:
            return logits_BTV
        return jnp.where((jnp.arange(V) < entries)[None, None, :], logits_BTV, -jnp.inf)

    def _products(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        head = self.head(params).astype(self.dtype)
        B, T, D = hidden_BTD.shape
        if self.platform != "cpu" or not 1 < B * T <= FEW_ROWS:
            return jnp.einsum("btd,vd->btv", hidden_BTD, head, preferred_element_type=jnp.float32)
        rows = hidden_BTD.reshape(B * T, D)
        logits_VN = jnp.einsum("vd,nd->vn", head, rows, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(logits_VN).T.reshape(B, T, -1)

    def logits(
        self, params: Params, batch: Batch, rng: jax.Array | None = None, entries: int | None = None
    ) -> jax.Array:
        """Float32 logits [B, T, V]; see `project` for `entries`."""
        return self.project(params, self.hidden(params, batch, rng).hidden, entries)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache of `length` slots for `rows` rows, in the compute dtype."""
        settings = self.settings
        shape: tuple[int, ...] = (settings.kv_heads, length, settings.head_dim)
        shape = shape if rows == 1 else (rows, *shape)
        count = settings.layers
        if self.compute.scan_layers:
            count = len(settings.attention.pattern)
            shape = (settings.layers // count, *shape)
        layers = (LayerCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in range(count))
        return Cache(tuple(layers), jnp.zeros((rows, length), jnp.int32))

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
        x, layers = module.apply({"params": params}, tokens_BT, positions_BT, mask, None, cache.layers)
        return x, Cache(layers, segments_BS)

    def _module(self, attention: str) -> Decoder:
        on_cpu = self.platform == "cpu"
        block, tpu = self.compute.attention_block, self.platform == "tpu"
        context = BlockContext(self.settings, self.dtype, on_cpu, attention, on_cpu, tpu, block)
        return Decoder(context, self.compute.scan_layers, self.compute.remat)

    def _boxed(self, rng: jax.Array, *, scan_layers: bool) -> Any:
        tokens = jnp.zeros((1, 1), jnp.int32)
        module = Decoder(BlockContext(self.settings, self.dtype, False, "einsum"), scan_layers, "none")
        mask = Mask(self.settings.attention.causal, None)
        return module.init(rng, tokens, tokens, mask, None, None)["params"]


def _is_instance(value: Any, kind: type) -> bool:
    return isinstance(value, kind)
