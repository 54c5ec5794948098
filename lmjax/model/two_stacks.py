"""A Transformer of two stacks: an encoder, and a decoder that attends to it. T5."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from lmjax.model.blocks import BlockContext
from lmjax.model.embeddings import EMBEDDING_SITE, Embeddings, Head
from lmjax.model.layers import dropout
from lmjax.model.masks import Mask
from lmjax.model.stack import LayerCaches, LayerLoop, Stack

ENCODER_SITE = 2_000_000  # where the encoder's dropout is drawn, beside the decoder's


class TwoStacks(nn.Module):
    """The embeddings and the head are shared; a stack's parameters are below "encoder" and "decoder".

    Both stacks drop out the result of their final norm, as T5 does (Raffel et al. 2020, section 2.1).
    """

    context: BlockContext
    loop: LayerLoop

    def setup(self) -> None:
        self.embeddings = Embeddings(self.context)
        self.output_head = Head(self.context)
        for part in (self.embeddings, self.output_head):
            nn.share_scope(self, part)
        self.encoder = Stack(self.context, self.loop, self.context.settings.encoder_layers)
        self.decoder = Stack(self.context, self.loop)

    def encode(self, inputs_BS: jax.Array, positions_BS: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        """The memory [B, S, D] of the inputs; the mask is not causal."""
        key = None if key is None else jax.random.fold_in(key, ENCODER_SITE)
        x = self.embeddings(inputs_BS, positions_BS, None, key)
        x, _ = self.encoder(x, positions_BS, mask, key)
        return dropout(x, self.context.settings.dropout, key, EMBEDDING_SITE + 1)

    def decode(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        memory_BSD: jax.Array | None,
        memory_mask: Mask,
        key: jax.Array | None,
        caches: LayerCaches | None,
    ) -> tuple[jax.Array, LayerCaches | None]:
        """Hidden states [B, T, D]; without a memory the caches hold its keys and values."""
        x = self.embeddings(tokens_BT, positions_BT, None, key)
        self.output_head()
        x, caches = self.decoder(x, positions_BT, mask, key, caches, memory_BSD, memory_mask)
        return dropout(x, self.context.settings.dropout, key, EMBEDDING_SITE + 1), caches

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Both stacks on the same tokens: what makes the parameters."""
        mask = Mask(self.context.settings.attention.causal, None)
        both = dataclasses.replace(mask, causal=False)
        memory = self.encode(tokens_BT, tokens_BT, both, None)
        return self.decode(tokens_BT, tokens_BT, mask, memory, both, None, None)[0]
