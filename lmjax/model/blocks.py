"""One Transformer block for all families, which differ in its settings."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.model.attention import TILE_ROWS, attention, cached_attention
from lmjax.model.layers import ACTIVATIONS, Dense, Norm, dropout
from lmjax.model.masks import Mask
from lmjax.model.positions import DistanceBias
from lmjax.model.remat import BETWEEN, UP
from lmjax.model.rotary import rotate, rotation_of
from lmjax.model.sharding import constrain, constrain_stream, row_major_stream
from lmjax.settings import ModelSettings

BRANCH, CROSS_BRANCH, FEED_FORWARD_BRANCH, WEIGHTS, CROSS_WEIGHTS = range(5)  # the sites of a block's dropout


@dataclass(frozen=True)
class BlockContext:
    """The configuration that all blocks of a model share: shapes, compute dtype, kinds of attention and products."""

    settings: ModelSettings
    dtype: jnp.dtype
    flatten: bool
    attention: str  # an implementation's name
    interpret: bool = False
    tpu: bool = False  # array layouts for the TPU compiler
    block: int | None = None  # the largest number of queries, and of keys, in a block of a fused kernel

    def hidden_std(self, inputs: int) -> float:
        """The initial standard deviation of a matrix from width to width, with so many inputs: see MuPSettings."""
        settings = self.settings
        return inputs**-0.5 if settings.init_std is None else settings.init_std * settings.base_ratio**0.5

    @property
    def query_std(self) -> float:
        """T5 leaves scores unscaled and begins with smaller queries instead (the released code of Raffel et al.)."""
        settings = self.settings
        small = settings.init_std is None and not settings.attention.scaled
        return self.hidden_std(settings.width) * (settings.head_dim**-0.5 if small else 1.0)

    def residual_std(self, inputs: int) -> float:
        """The initial standard deviation of projections into the residual stream (Radford et al. 2019, section 2.3)."""
        settings, std = self.settings, self.hidden_std(inputs)
        return std / (2 * settings.layers) ** 0.5 if settings.scaled_residual_init else std

    @property
    def embedding_std(self) -> float:
        return self.settings.init_std or 1.0

    @property
    def table_std(self) -> float:
        """Of a table of logits of its own, and of T5's bias of positions."""
        return self.settings.init_std or self.settings.width**-0.5

    @property
    def attention_scale(self) -> float:
        """The factor of the scores: 1 / sqrt(head_dim); under muP it falls as 1 / head_dim from the base model's."""
        attention, base = self.settings.attention, self.settings.base_head_dim
        scale = 1 / math.sqrt(attention.scores.scale_dim or base) if attention.scaled else 1.0
        return scale * (base / self.settings.head_dim)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "positions", "bias", "memory", "memory_mask"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Surroundings:
    """The arrays of a forward pass that all blocks share."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: jax.Array | DistanceBias | None = None  # [1, H, T, S] or by distance, added to the scores
    memory: jax.Array | None = None  # [B, M, D]: the source of cross-attention; None where a cache has it
    memory_mask: Mask | None = None  # None: there is no cross-attention


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "memory"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, [B, Hkv, S, K] each, in the layout of their products; for one row [Hkv, S, K].

    With an axis of size 1, XLA's CPU backend would copy the cache three times for every token. `memory` holds those of
    its cross-attention, which no token changes.
    """

    keys: jax.Array
    values: jax.Array
    memory: LayerCache | None = None

    @staticmethod
    def of(k_BSHK: jax.Array, v_BSHK: jax.Array) -> LayerCache:
        """Keys and values in the cache's layout."""
        k, v = (jnp.swapaxes(x, 1, 2) for x in (k_BSHK, v_BSHK))
        return LayerCache(k, v) if k.shape[0] > 1 else LayerCache(k[0], v[0])


def key_value_dense(context: BlockContext, name: str | None = None) -> Dense:
    """The projection of a source [B, S, D] to keys and values, [B, S, 2, Hkv, K], or, on TPU, a tuple of the two."""
    settings = context.settings
    return Dense(
        (2, settings.kv_heads, settings.head_dim),
        ("embed", "pair", "kv_heads", "head_dim"),
        std=context.hidden_std(settings.width),
        bias=settings.attention.bias,
        dtype=context.dtype,
        flatten=context.flatten,
        bias_product=context.tpu,
        split=context.tpu,
        name=name,
    )


def keys_and_values(context: BlockContext, pair: Any) -> tuple[jax.Array, jax.Array]:
    """The result of `key_value_dense`: [B, S, Hkv, K] each."""
    k, v = pair if context.tpu else (pair[..., 0, :, :], pair[..., 1, :, :])
    return k, v


class Attention(nn.Module):
    """Projections and `attention`: cross-attention to `memory` or to a cache of it, or else self-attention."""

    context: BlockContext
    kind: str = "dense"  # of the attention pattern

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        mask: Mask,
        around: Surroundings,
        key: jax.Array | None,
        cache: LayerCache | None,
        memory_cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        settings, context = self.context.settings, self.context
        heads = settings.attention
        q = Dense(
            (heads.heads, settings.head_dim),
            ("embed", "heads", "head_dim"),
            std=context.query_std,
            bias=heads.bias,
            dtype=context.dtype,
            flatten=context.flatten,
            bias_product=context.tpu,
            name="query",
        )(x)
        if memory_cache is not None:
            q = constrain(q, "batch", "time", "act_heads", None)
            y = cached_attention(
                q, memory_cache.keys, memory_cache.values, mask, bias=None, tpu=context.tpu, **self._scores
            )
            return self._out(y), None
        pair = key_value_dense(context, "key_value")(x if memory is None else memory)
        k, v = keys_and_values(context, pair)
        if heads.qk_norm != "none":
            q, k = self._normed("query_norm", q), self._normed("key_norm", k)
        rotation = rotation_of(settings, self.kind) if memory is None else None
        if rotation is not None:
            q, k = (rotate(x, around.positions, rotation, context.tpu) for x in (q, k))
        q = constrain(q, "batch", "time", "act_heads", None)
        k = constrain(k, "batch", "time", "act_kv_heads", None)
        v = constrain(v, "batch", "time", "act_kv_heads", None)
        bias = around.bias if memory is None else None
        if cache is not None:
            cache = _write(cache, mask.offset, k, v)
            y = cached_attention(q, cache.keys, cache.values, mask, bias=bias, tpu=context.tpu, **self._scores)
        else:
            y = attention(
                q,
                k,
                v,
                mask,
                implementation=context.attention,
                bias=bias,
                dropout_rate=heads.dropout,
                key=key,
                interpret=context.interpret,
                block=context.block,
                **self._scores,
            )
        return self._out(y), cache

    @property
    def _scores(self) -> dict[str, Any]:
        return {"scale": self.context.attention_scale, "cap": self.context.settings.attention.scores.cap}

    def _normed(self, name: str, x_BTHK: jax.Array) -> jax.Array:
        """A norm over each head, or over all heads as one vector."""
        settings, shape = self.context.settings, x_BTHK.shape
        x = x_BTHK if settings.attention.qk_norm == "head" else x_BTHK.reshape(*shape[:2], -1)
        return Norm(settings.norm, self.context.dtype, name=name)(x).reshape(shape)

    def _out(self, y_BTHK: jax.Array) -> jax.Array:
        settings, context = self.context.settings, self.context
        return Dense(
            (settings.width,),
            ("heads", "head_dim", "embed"),
            std=context.residual_std(settings.attention.heads * settings.head_dim),
            bias=settings.attention.has_out_bias,
            dtype=context.dtype,
            flatten=context.flatten,
            name="out",
        )(y_BTHK)


class FeedForward(nn.Module):
    """Two matrices and an activation, or three matrices if gated."""

    context: BlockContext

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        settings, context = self.context.settings, self.context
        shape = settings.feed_forward
        make = functools.partial(Dense, bias=shape.bias, dtype=context.dtype, flatten=context.flatten)
        up = ((settings.feed_forward_width,), ("embed", "mlp"))
        std = context.hidden_std(settings.width)
        hidden = ACTIVATIONS[shape.activation](checkpoint_name(make(*up, std=std, name="up")(x), UP))
        if shape.gated:
            hidden = hidden * checkpoint_name(make(*up, std=std, name="gate")(x), UP)
        hidden = constrain(hidden, "batch", "time", "act_mlp")
        std = context.residual_std(settings.feed_forward_width)
        return make((settings.width,), ("mlp", "embed"), std=std, name="down")(hidden)


class Block(nn.Module):
    """Attention, cross-attention if there is a mask for it, and the feed-forward layer, each with its norm.

    Pre-norm computes x + branch(norm(x)), post-norm norm(x + branch(x)), "sandwich" x + norm(branch(norm(x))) and
    "branch_output" x + norm(branch(x)). New keys and values are written to the cache at the mask's offset.
    """

    context: BlockContext
    kind: str  # of the attention pattern

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache | None,
        key: jax.Array | None,
        around: Surroundings,
    ) -> tuple[jax.Array, LayerCache | None]:
        settings = self.context.settings
        mask = around.mask.with_band(settings.attention.band_of(self.kind))

        normed = self._before("attention_norm", x)
        attend = Attention(self.context, self.kind, name="attention")
        y, cache = attend(normed, None, mask, around, _fold(key, WEIGHTS), cache)
        x = self._after("attention_norm", x + self._branch("attention_output_norm", y, key, BRANCH))
        x = checkpoint_name(x, BETWEEN)
        if around.memory_mask is not None:
            normed, kept = self._before("cross_norm", x), None if cache is None else cache.memory
            cross = Attention(self.context, name="cross_attention")
            y, _ = cross(normed, around.memory, around.memory_mask, around, _fold(key, CROSS_WEIGHTS), None, kept)
            x = self._after("cross_norm", x + self._branch("cross_output_norm", y, key, CROSS_BRANCH))
        normed = self._before("feed_forward_norm", x)
        y = FeedForward(self.context, name="feed_forward")(normed)
        x = self._after("feed_forward_norm", x + self._branch("feed_forward_output_norm", y, key, FEED_FORWARD_BRANCH))
        return self._laid_out(x), cache

    def _branch(self, name: str, y: jax.Array, key: jax.Array | None, site: int) -> jax.Array:
        """What is added to the stream."""
        y = self._norm(name, self._laid_out(y), "sandwich", "branch_output")
        return dropout(y, self.context.settings.dropout, key, site)

    def _laid_out(self, x: jax.Array) -> jax.Array:
        """The stream, over devices and in memory. The few tokens of a step of decoding fill no registers by rows."""
        return row_major_stream(x) if self.context.tpu and x.shape[1] >= TILE_ROWS else constrain_stream(x)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        """What a branch reads, gathered over shards."""
        return constrain(self._norm(name, x, "pre", "sandwich"), "batch", "time", "act_embed")

    def _after(self, name: str, x: jax.Array) -> jax.Array:
        return self._norm(name, x, "post")

    def _norm(self, name: str, x: jax.Array, *positions: str) -> jax.Array:
        """The norm of x where it stands at one of these positions; x itself otherwise."""
        norm = self.context.settings.norm
        return Norm(norm, self.context.dtype, self.context.tpu, name=name)(x) if norm.position in positions else x


def _fold(key: jax.Array | None, site: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, site)


def _write(cache: LayerCache, slot: jax.Array | int, k_BTHK: jax.Array, v_BTHK: jax.Array) -> LayerCache:
    """The cache with new keys and values from `slot` on."""

    def put(cached: jax.Array, new_BTHK: jax.Array) -> jax.Array:
        lead, (T, K) = cached.shape[:-2], (new_BTHK.shape[1], new_BTHK.shape[3])
        new = jnp.swapaxes(new_BTHK, 1, 2).reshape(*lead, T, K).astype(cached.dtype)
        return jax.lax.dynamic_update_slice(cached, new, (*(0 for _ in lead), slot, 0))

    return LayerCache(put(cache.keys, k_BTHK), put(cache.values, v_BTHK), cache.memory)
