"""One Transformer block for every family: what differs is a value of its settings."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.model.attention import attention, cached_attention
from lmjax.model.layers import ACTIVATIONS, Dense, Norm, dropout
from lmjax.model.masks import Mask
from lmjax.model.positions import rotate
from lmjax.model.remat import BETWEEN, UP
from lmjax.model.sharding import constrain
from lmjax.settings import ModelSettings

BRANCH, CROSS_BRANCH, FEED_FORWARD_BRANCH, WEIGHTS, CROSS_WEIGHTS = range(5)  # where a block draws dropout


@dataclass(frozen=True)
class BlockContext:
    """What every block of a model shares: shapes, the compute dtype and how attention and matmuls are done."""

    settings: ModelSettings
    dtype: jnp.dtype
    flatten: bool
    attention: str  # an implementation's name
    interpret: bool = False
    tpu: bool = False  # arrays are laid out for the TPU's compiler
    block: int | None = None  # the most queries, and keys, that a fused kernel holds at once

    @property
    def residual_std(self) -> float:
        """Of the projections that write to the residual stream (Radford et al. 2019, section 2.3)."""
        settings = self.settings
        return settings.init_std / (2 * settings.layers) ** 0.5 if settings.scaled_residual_init else settings.init_std


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "positions", "bias", "memory", "memory_mask"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Surroundings:
    """The arrays that are the same for every block of one pass."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: jax.Array | None = None  # [1, H, T, S], added to the scores
    memory: jax.Array | None = None  # [B, M, D]: what cross-attention reads
    memory_mask: Mask | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, [B, Hkv, S, K] each, as attention multiplies them; of a single row [Hkv, S, K].

    For an axis of size 1, XLA's CPU backend copies the whole cache three times for every token.
    """

    keys: jax.Array
    values: jax.Array


class Attention(nn.Module):
    """Projections around `attention`; self-attention unless `memory` is given."""

    context: BlockContext

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        mask: Mask,
        around: Surroundings,
        key: jax.Array | None,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        settings, context = self.context.settings, self.context
        heads, width = settings.attention, settings.head_dim
        make = functools.partial(
            Dense,
            std=settings.init_std,
            bias=heads.bias,
            dtype=context.dtype,
            flatten=context.flatten,
            bias_product=context.tpu,
        )
        q = make((heads.heads, width), ("embed", "heads", "head_dim"), name="query")(x)
        source = x if memory is None else memory
        pair = make(
            (2, settings.kv_heads, width),
            ("embed", "pair", "kv_heads", "head_dim"),
            apart=context.tpu,
            name="key_value",
        )(source)
        k, v = pair if context.tpu else (pair[..., 0, :, :], pair[..., 1, :, :])
        if settings.positions.kind == "rotary" and memory is None:
            q = rotate(q, around.positions, settings.positions.rotary_base)
            k = rotate(k, around.positions, settings.positions.rotary_base)
        q = constrain(q, "batch", "time", "act_heads", None)
        k = constrain(k, "batch", "time", "act_kv_heads", None)
        v = constrain(v, "batch", "time", "act_kv_heads", None)
        bias = around.bias if memory is None else None
        if cache is not None:
            cache = _write(cache, mask.offset, k, v)
            y = cached_attention(q, cache.keys, cache.values, mask, scaled=heads.scaled, bias=bias)
        else:
            y = attention(
                q,
                k,
                v,
                mask,
                implementation=context.attention,
                scaled=heads.scaled,
                bias=bias,
                dropout_rate=heads.dropout,
                key=key,
                interpret=context.interpret,
                block=context.block,
            )
        out = Dense(
            (settings.width,),
            ("heads", "head_dim", "embed"),
            std=context.residual_std,
            bias=heads.bias,
            dtype=context.dtype,
            flatten=context.flatten,
            name="out",
        )
        return out(y), cache


class FeedForward(nn.Module):
    """Two matrices and an activation, or three when gated."""

    context: BlockContext

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        settings, context = self.context.settings, self.context
        shape = settings.feed_forward
        make = functools.partial(Dense, bias=shape.bias, dtype=context.dtype, flatten=context.flatten)
        up = ((settings.feed_forward_width,), ("embed", "mlp"))
        hidden = checkpoint_name(make(*up, std=settings.init_std, name="up")(x), UP)
        hidden = ACTIVATIONS[shape.activation](hidden)
        if shape.gated:
            hidden = hidden * make(*up, std=settings.init_std, name="gate")(x)
        hidden = constrain(hidden, "batch", "time", "act_mlp")
        return make((settings.width,), ("mlp", "embed"), std=context.residual_std, name="down")(hidden)


class Block(nn.Module):
    """Attention, cross-attention where there is a memory, and the feed-forward layer, each with its norm.

    Pre-norm adds branch(norm(x)) to x; post-norm gives norm(x + branch(x)). New keys and values go into
    the cache at the mask's offset.
    """

    context: BlockContext
    kind: str  # of the attention pattern: "dense" or "banded"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache | None,
        key: jax.Array | None,
        around: Surroundings,
    ) -> tuple[jax.Array, LayerCache | None]:
        settings = self.context.settings
        mask = around.mask.with_band(settings.attention.band if self.kind == "banded" else None)

        normed = self._before("attention_norm", x)
        attend = Attention(self.context, name="attention")
        y, cache = attend(normed, None, mask, around, _fold(key, WEIGHTS), cache)
        x = self._after("attention_norm", x + dropout(y, settings.dropout, key, BRANCH))
        x = checkpoint_name(x, BETWEEN)
        if around.memory is not None and around.memory_mask is not None:
            normed = self._before("cross_norm", x)
            cross = Attention(self.context, name="cross_attention")
            y, _ = cross(normed, around.memory, around.memory_mask, around, _fold(key, CROSS_WEIGHTS), None)
            x = self._after("cross_norm", x + dropout(y, settings.dropout, key, CROSS_BRANCH))
        normed = self._before("feed_forward_norm", x)
        y = FeedForward(self.context, name="feed_forward")(normed)
        x = self._after("feed_forward_norm", x + dropout(y, settings.dropout, key, FEED_FORWARD_BRANCH))
        return constrain(x, "batch", "time", "act_embed"), cache

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        norm = self.context.settings.norm
        return Norm(norm, self.context.dtype, self.context.tpu, name=name)(x) if norm.position == "pre" else x

    def _after(self, name: str, x: jax.Array) -> jax.Array:
        norm = self.context.settings.norm
        return Norm(norm, self.context.dtype, self.context.tpu, name=name)(x) if norm.position == "post" else x


def _fold(key: jax.Array | None, site: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, site)


def _write(cache: LayerCache, slot: jax.Array | int, k_BTHK: jax.Array, v_BTHK: jax.Array) -> LayerCache:
    """The cache with new keys and values from `slot` on."""

    def put(whole: jax.Array, new_BTHK: jax.Array) -> jax.Array:
        lead, (T, K) = whole.shape[:-2], (new_BTHK.shape[1], new_BTHK.shape[3])
        new = jnp.swapaxes(new_BTHK, 1, 2).reshape(*lead, T, K).astype(whole.dtype)
        return jax.lax.dynamic_update_slice(whole, new, (*(0 for _ in lead), slot, 0))

    return LayerCache(put(cache.keys, k_BTHK), put(cache.values, v_BTHK))
