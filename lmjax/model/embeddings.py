"""The ends of a model: from tokens to the residual stream, and the table that turns hidden states into logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.model.blocks import BlockContext
from lmjax.model.layers import dropout, normal_init
from lmjax.model.sharding import constrain
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
    """The residual stream [B, T, D] of tokens: their embeddings, those of learned positions, and dropout."""

    context: BlockContext

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, key: jax.Array | None) -> jax.Array:
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
        return dropout(constrain(x, "batch", "time", "act_embed"), settings.dropout, key, EMBEDDING_SITE)


class Head(nn.Module):
    """Makes the table of logits where it is not the embedding's; a loss multiplies with it, in chunks of tokens."""

    settings: ModelSettings

    @nn.compact
    def __call__(self) -> None:
        if not self.settings.tied_head:
            init = normal_init(self.settings.init_std, ("head_vocab", "embed"))
            self.param("head", init, (self.settings.vocab_size, self.settings.width), jnp.float32)


def head_table(settings: ModelSettings, params: dict[str, Any]) -> Any:
    """The float32 table [V, D] of logits, among a model's parameters."""
    return params["tokens" if settings.tied_head else "head"]
