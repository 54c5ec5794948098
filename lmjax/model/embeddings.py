"""The ends of a model: from tokens to the residual stream, and from hidden states to logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.blocks import BlockContext
from lmjax.model.layers import ACTIVATIONS, Dense, Norm, dropout, normal_init
from lmjax.model.logit_head import LogitHead
from lmjax.model.sharding import constrain, constrain_stream
from lmjax.settings import ModelSettings

EMBEDDING_SITE = 1_000_000  # where the embeddings' dropout is drawn; layers draw at their own number


def look_up(table_ND: jax.Array, indices_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table, [B, T, D], sharded along their width as the table is.

    The residual stream is sharded along its rows instead. Without this constraint in between, the compiler makes the
    result whole on every device of a mesh that shards rows over data as well as fsdp; with it, devices exchange parts.
    """
    indices_BT = constrain(indices_BT, "lookup_batch", "time")
    return constrain(jnp.take(table_ND, indices_BT, axis=0).astype(dtype), "lookup_batch", "time", "embed")


class Embeddings(nn.Module):
    """The residual stream [B, T, D] of tokens: their embeddings, those of learned positions and of types, and dropout.

    Without `types_BT` all tokens are of type 0.
    """

    context: BlockContext

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, types_BT: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        settings, dtype = self.context.settings, self.context.dtype
        std = self.context.embedding_std
        shape = (settings.vocab_size, settings.width)
        token_table = self.param("tokens", normal_init(std, ("vocab", "embed")), shape, jnp.float32)
        # The constraint keeps the gradient of this use apart from the head's, where that is the same table: the TPU
        # compiler would otherwise scatter one into the other, and sum both over devices instead of their sum.
        token_table = constrain(token_table, "vocab", "embed")
        x = look_up(token_table, tokens_BT, dtype)
        if settings.embeddings.scaled:
            x = x * jnp.asarray(settings.width**0.5, dtype)
        if settings.positions.kind == "learned":
            shape = (settings.context, settings.width)
            table = self.param("positions", normal_init(std, ("positions", "embed")), shape, jnp.float32)
            x = x + look_up(table, positions_BT, dtype)
        if settings.positions.segment_types:
            shape = (settings.positions.segment_types, settings.width)
            table = self.param("segment_types", normal_init(std, ("segment_types", "embed")), shape, jnp.float32)
            x = x + look_up(table, jnp.zeros_like(tokens_BT) if types_BT is None else types_BT, dtype)
        if settings.norm.embeddings:
            x = Norm(settings.norm, dtype, self.context.tpu, name="embedding_norm")(x)
        return dropout(constrain_stream(x), settings.dropout, key, EMBEDDING_SITE)


class Transform(nn.Module):
    """A dense layer, the activation and a norm, before the table of a masked language model (Devlin et al. 2018)."""

    context: BlockContext

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        context, settings = self.context, self.context.settings
        x_BTD = ACTIVATIONS[settings.feed_forward.activation](square(context, "dense")(x_BTD))
        return Norm(settings.norm, context.dtype, context.tpu, name="norm")(x_BTD)


class Pooler(nn.Module):
    """A dense layer and tanh, on the hidden state of a row's first token (Devlin et al. 2018)."""

    context: BlockContext

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.tanh(square(self.context, "dense")(x_BTD))


def square(context: BlockContext, name: str) -> Dense:
    """A dense layer from width to width, outside of the blocks."""
    width = context.settings.width
    std = context.hidden_std(width)
    return Dense((width,), ("embed", None), std=std, bias=True, dtype=context.dtype, flatten=context.flatten, name=name)


class Head(nn.Module):
    """Makes the parameters behind the hidden states: a table of logits of its own, a bias, a transform, a pooler.

    They are read by `logit_head`, `Transform` and `Pooler`: a loss multiplies with the table in chunks of tokens.
    """

    context: BlockContext

    @nn.compact
    def __call__(self) -> None:
        settings, context = self.context.settings, self.context
        if not settings.tied_head:
            init = normal_init(context.table_std, ("head_vocab", "embed"))
            self.param("head", init, (settings.vocab_size, settings.width), jnp.float32)
        if settings.head.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("head_vocab",))
            self.param("head_bias", zeros, (settings.vocab_size,), jnp.float32)
        if self.is_initializing():
            hidden_BTD = jnp.zeros((1, 1, settings.width), context.dtype)
            if settings.head.transform:
                Transform(context, name="head_transform")(hidden_BTD)
            if settings.head.pooler:
                Pooler(context, name="pooler")(hidden_BTD)


def logit_head(settings: ModelSettings, params: dict[str, Any]) -> LogitHead:
    """The head among a model's parameters."""
    table = params["tokens" if settings.tied_head else "head"]
    scale = settings.base_ratio * (settings.width**-0.5 if settings.head.scaled else 1.0)
    return LogitHead(table, params["head_bias"] if settings.head.bias else None, scale, settings.head.logit_cap)
