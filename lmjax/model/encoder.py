"""An encoder as plain functions: every token sees its whole segment. BERT, with its pooler and its head's transform."""

from __future__ import annotations

from typing import Any, Literal

import jax

from lmjax.model.embeddings import Pooler, Transform
from lmjax.model.transformer import OneStackModel, Params, Reads


class Encoder(OneStackModel):
    """A model whose tokens see both sides. `token_types` of a batch are optional: without them, all are of type 0."""

    def transformed(self, params: Params, hidden_BTD: jax.Array) -> Any:
        if not self.settings.head.transform:
            return hidden_BTD
        return Transform(self._context("einsum")).apply({"params": params["head_transform"]}, hidden_BTD)

    @property
    def read_by_heads(self) -> Literal[Reads, "pooled"]:
        return "pooled" if self.settings.head.pooler else "first"

    def pooled(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        if not self.settings.head.pooler:
            return super().pooled(params, hidden_BTD)
        pooled_B1D: Any = Pooler(self._context("einsum")).apply({"params": params["pooler"]}, hidden_BTD[:, :1])
        return pooled_B1D[:, 0]
