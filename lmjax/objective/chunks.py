"""Tokens in chunks: how many there are, and a loop over them, so that a loss never holds all logits at once.

A chunk takes every n-th token of every row, so that on a mesh each device does its share of each chunk, however rows
and time are sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.model.language_model import Chunking
from lmjax.model.sharding import bound_mesh, constrain

FEWEST_TOKENS = 256  # of a chunk that is cut by the number of its logits: with fewer, the products lose more


def chunk_count(B: int, T: int, V: int, chunking: Chunking) -> int:
    """The least number of chunks of which each has at most so many tokens on a device, or one of each row.

    Where `chunking` says no number of tokens they are as many as have its logits, though not fewer than 256, and at
    most half of all: a loss and its gradient hold two arrays of a chunk's logits, which is then no more than one of
    all. The count divides T, unless that takes more than twice as many chunks as are needed and time is not sharded.
    """
    bound = bound_mesh()
    rows, times = (bound.size("batch"), bound.size("time")) if bound is not None else (1, 1)
    times = times if T % times == 0 else 1
    shards = rows * times
    most = chunking.tokens or min(max(chunking.logits // V, FEWEST_TOKENS), max(B * T // (2 * shards), 1))
    dividing = (n for n in range(1, T // times) if T % (n * times) == 0)
    even = next((n for n in dividing if B * (T // n) <= most * shards), T // times)
    needed = -(-T // max(most * rows // B, 1))
    return needed if times == 1 and even > 2 * needed else even


def whole_head(head_VD: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The head as all chunks multiply it: in the compute dtype, made whole along its width once.

    Losses call it inside of their own gradients, so that the head's gradient leaves them in the head's dtype. Where the
    head is the embedding too, both gradients are then of one dtype, and the TPU compiler adds them before it sums them
    over devices, once.
    """
    return constrain(head_VD.astype(dtype), "vocab", "act_embed")


def chunk_logits(head_VD: jax.Array, hidden_BtD: jax.Array, vocab: int) -> tuple[jax.Array, jax.Array]:
    """A chunk's float32 logits, [B, t, V], -inf from the head's row `vocab` on; and the number of each column."""
    logits_BtV = jnp.einsum("btd,vd->btv", hidden_BtD, head_VD, preferred_element_type=jnp.float32)
    column_BtV = jax.lax.broadcasted_iota(jnp.int32, logits_BtV.shape, 2)
    if vocab < head_VD.shape[0]:
        logits_BtV = jnp.where(column_BtV < vocab, logits_BtV, -jnp.inf)
    return logits_BtV, column_BtV


def no_head_gradient(head_VD: jax.Array, vocab_last: bool) -> jax.Array:
    """Zeros to add chunks' head gradients to, in float32."""
    V, D = head_VD.shape
    return jnp.zeros_like(head_VD, shape=(D, V) if vocab_last else (V, D), dtype=jnp.float32)


def head_gradient(hidden_BtD: jax.Array, slope_BtV: jax.Array, vocab_last: bool) -> jax.Array:
    """A chunk's part of the head's gradient, [D, V] or [V, D], in float32."""
    product = "btd,btv->dv" if vocab_last else "btd,btv->vd"
    return jnp.einsum(product, hidden_BtD, slope_BtV, preferred_element_type=jnp.float32)


def whole_gradient(grad_head: jax.Array, head_VD: jax.Array, vocab_last: bool) -> jax.Array:
    """The sum of the chunks' parts as the head's gradient, in its dtype and whole along its width.

    With the sharding of the table itself, which would spread to the loop over chunks, each part would be scattered over
    fsdp by itself.
    """
    return whole_head(grad_head.T if vocab_last else grad_head, head_VD.dtype)


def over_chunks(
    count: int, add: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]], carry: Any, arrays: tuple[jax.Array, ...]
) -> tuple[Any, Any]:
    """`lax.scan` of `add` over chunks of arrays [B, T, ...], or a plain call; chunk i has every row's tokens i + n x k.

    What `add` returns beside the carry is put together again. Where the count does not divide T, the last chunks have
    zeros behind a row's last token: `add` must make nothing of tokens of weight 0.
    """
    if count == 1:
        return add(carry, arrays)
    T = arrays[0].shape[1]
    each = -(-T // count)

    def cut(x: jax.Array) -> jax.Array:
        if each * count > T:
            x = jnp.pad(x, ((0, 0), (0, each * count - T), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], each, count, *x.shape[2:]), 2, 0)

    def whole(pieces: jax.Array) -> jax.Array:
        x = jnp.moveaxis(pieces, 0, 2)
        return x.reshape(x.shape[0], each * count, *x.shape[3:])[:, :T]

    carry, pieces = jax.lax.scan(add, carry, jax.tree.map(cut, arrays))
    return carry, jax.tree.map(whole, pieces)
