"""A Transformer of one stack: embeddings, blocks and a head. GPT, Llama and, without causality, BERT shapes."""

from __future__ import annotations

import flax.linen as nn
import jax

from lmjax.model.blocks import BlockContext
from lmjax.model.embeddings import Embeddings, Head
from lmjax.model.masks import Mask
from lmjax.model.stack import LayerCaches, LayerLoop, Stack


class OneStack(nn.Module):
    """Tokens [B, T] in, hidden states [B, T, D] after the final norm out; the loss applies the head.

    The parts share one scope: parameters have the names that the parts give them, without a level for the part.
    """

    context: BlockContext
    loop: LayerLoop

    def setup(self) -> None:
        self.embeddings = Embeddings(self.context)
        self.output_head = Head(self.context)
        self.stack = Stack(self.context, self.loop)
        for part in (self.embeddings, self.output_head, self.stack):
            nn.share_scope(self, part)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        types_BT: jax.Array | None,
        mask: Mask,
        key: jax.Array | None,
        caches: LayerCaches | None,
    ) -> tuple[jax.Array, LayerCaches | None]:
        x = self.embeddings(tokens_BT, positions_BT, types_BT, key)
        self.output_head()
        return self.stack(x, positions_BT, mask, key, caches)
