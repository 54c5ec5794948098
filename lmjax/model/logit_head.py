"""The head of a language model: what turns hidden states into logits over the vocabulary."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax

from lmjax.model.layers import soft_cap


@functools.partial(jax.tree_util.register_dataclass, data_fields=["table", "bias"], meta_fields=["scale", "cap"])
@dataclass(frozen=True)
class LogitHead:
    """logits [B, T, V] = scale x hidden [B, T, D] table^T + bias, soft-capped where there is a cap.

    table: [V, D] float32, the embeddings where they are tied. bias: [V] float32, or None (BERT has one). scale: 1, or
    width^-0.5 (T5 v1.0), or muP's base_width / width. cap: of `lmjax.model.layers.soft_cap` (Gemma 2).
    """

    table: jax.Array
    bias: jax.Array | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, products_BTV: jax.Array) -> jax.Array:
        """The logits of the products of hidden states and the table."""
        scaled = products_BTV if self.scale == 1.0 else products_BTV * self.scale
        return soft_cap(scaled if self.bias is None else scaled + self.bias[None, None], self.cap)
