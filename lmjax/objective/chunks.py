"""Tokens in chunks: the number of chunks, and a loop over them, so that a loss never holds all logits at once.

Chunk i of n has the tokens i, i + n, i + 2n, ... of every row. On a mesh every device therefore computes a part of
every chunk, however rows and time are sharded. On one device all tokens may instead be one row, those with a weight
first (`weighted_first`), whose chunks are neighbours; those without any weight are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.logit_head import LogitHead
from lmjax.model.sharding import bound_mesh, constrain
from lmjax.model.transformer import Chunking

FEWEST_TOKENS = 256  # in a chunk whose size follows from its logits: products of fewer tokens are less efficient


def chunk_count(B: int, T: int, V: int, chunking: Chunking) -> int:
    """The least number of chunks that have at most `chunking.tokens` tokens on a device, or one token of each row.

    Without `chunking.tokens`, a chunk has as many tokens as make `chunking.logits` logits, at least FEWEST_TOKENS, and
    at most half of all tokens: a loss and its gradient hold two arrays of a chunk's logits, together then at most as
    large as one array of all logits. The count divides T, unless time is not sharded and a count that divides T is
    more than twice the least.
    """
    bound = bound_mesh()
    rows, times = (bound.size("batch"), bound.size("time")) if bound is not None else (1, 1)
    times = times if T % times == 0 else 1
    shards = rows * times
    most_tokens = chunking.tokens or min(max(chunking.logits // V, FEWEST_TOKENS), max(B * T // (2 * shards), 1))
    divisors = (n for n in range(1, T // times) if T % (n * times) == 0)
    dividing = next((n for n in divisors if B * (T // n) <= most_tokens * shards), T // times)
    least = -(-T // max(most_tokens * rows // B, 1))
    return least if times == 1 and dividing > 2 * least else dividing


class Order(NamedTuple):
    """An order of N tokens, and where each of them is in it."""

    tokens: jax.Array  # [N]
    places: jax.Array  # [N]


def weighted_first(weights_BT: jax.Array | None, chunking: Chunking) -> Order | None:
    """Tokens whose weight is not 0, then the others; None where the losses take them as they lie."""
    bound = bound_mesh()
    if weights_BT is None or not chunking.weighted_first or (bound is not None and bound.mesh.size > 1):
        return None
    tokens_N = jnp.argsort(weights_BT.reshape(-1) == 0, stable=True)
    return Order(tokens_N, jnp.argsort(tokens_N))


def in_one_row(order: Order, x_BT: jax.Array) -> jax.Array:
    """[1, N, ...]: the tokens' entries in an order."""
    x_N = jnp.asarray(x_BT).reshape(-1, *x_BT.shape[2:])
    return (_permuted(x_N, order) if jnp.issubdtype(x_N.dtype, jnp.floating) else x_N[order.tokens])[None]


def in_rows(order: Order, x_1N: jax.Array, B: int) -> jax.Array:
    """The inverse of `in_one_row`, [B, T, ...]."""
    return _permuted(x_1N[0], Order(order.places, order.tokens)).reshape(B, -1, *x_1N.shape[2:])


@jax.custom_vjp
def _permuted(x_N: jax.Array, order: Order) -> jax.Array:
    """x[order.tokens], whose gradient is gathered, too: XLA's CPU backend scatters slowly."""
    return x_N[order.tokens]


_permuted.defvjp(lambda x_N, order: (x_N[order.tokens], order), lambda order, g_N: (g_N[order.places], None))


def gathered_head(head: LogitHead, dtype: jnp.dtype) -> LogitHead:
    """The head with its table in the compute dtype, gathered along its width, once for all chunks.

    Losses call it inside their custom gradients, so that the head's gradient has the head's dtype. Where the head is
    also the embedding, both gradients then have one dtype, and the TPU compiler adds them before it sums them over
    devices, once.
    """
    return dataclasses.replace(head, table=constrain(head.table.astype(dtype), "vocab", "act_embed"))


def chunk_logits(head: LogitHead, hidden_BtD: jax.Array, vocab: int) -> tuple[jax.Array, jax.Array]:
    """A chunk's float32 logits, [B, t, V], -inf from the table's row `vocab` on; and the index of each column."""
    products_BtV = jnp.einsum("btd,vd->btv", hidden_BtD, head.table, preferred_element_type=jnp.float32)
    logits_BtV = head.logits(products_BtV)
    column_BtV = jax.lax.broadcasted_iota(jnp.int32, logits_BtV.shape, 2)
    if vocab < head.table.shape[0]:
        logits_BtV = jnp.where(column_BtV < vocab, logits_BtV, -jnp.inf)
    return logits_BtV, column_BtV


def zero_head_gradient(head: LogitHead, vocab_last: bool) -> LogitHead:
    """The float32 zeros that the chunks' parts of the head's gradient are added to."""
    V, D = head.table.shape
    table = jnp.zeros_like(head.table, shape=(D, V) if vocab_last else (V, D), dtype=jnp.float32)
    bias = None if head.bias is None else jnp.zeros_like(head.bias, dtype=jnp.float32)
    return dataclasses.replace(head, table=table, bias=bias)


def logit_gradients(
    head: LogitHead, hidden_BtD: jax.Array, dlogits_BtV: jax.Array, total: LogitHead, vocab_last: bool
) -> tuple[jax.Array, LogitHead]:
    """A chunk's gradient of its hidden states, and `total` with its part of the head's gradient added.

    `dlogits_BtV` is of the logits before their cap, and the head `gathered_head`'s. The table's gradient is [D, V] with
    `vocab_last`, and float32.
    """
    bias = None if total.bias is None else total.bias + dlogits_BtV.sum((0, 1), dtype=jnp.float32)
    scaled_BtV = dlogits_BtV if head.scale == 1.0 else dlogits_BtV * head.scale
    scaled_BtV = scaled_BtV.astype(head.table.dtype)
    dhidden_BtD = jnp.einsum("btv,vd->btd", scaled_BtV, head.table)
    product = "btd,btv->dv" if vocab_last else "btd,btv->vd"
    table = jnp.einsum(product, hidden_BtD, scaled_BtV, preferred_element_type=jnp.float32)
    return dhidden_BtD, dataclasses.replace(total, table=total.table + table, bias=bias)


def gathered_head_gradient(dhead: LogitHead, head: LogitHead, vocab_last: bool) -> LogitHead:
    """The sum of the chunks' parts as the head's gradient, in its dtype and gathered along its width.

    The sharding of the table itself would propagate into the loop over chunks, which would then scatter every chunk's
    part over fsdp separately.
    """
    table = dhead.table.T if vocab_last else dhead.table
    return gathered_head(dataclasses.replace(dhead, table=table), head.table.dtype)


def over_chunks(
    count: int,
    add: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]],
    carry: Any,
    arrays: tuple[jax.Array, ...],
    weights_1N: jax.Array | None = None,
) -> tuple[Any, Any]:
    """`lax.scan` of `add` over `count` chunks of arrays [B, T, ...]; a plain call for one chunk.

    The arrays that `add` returns beside the carry are merged into [B, T, ...]. Where the count does not divide T, the
    last chunks are padded with zeros: `add` must add nothing for tokens of weight 0. `weights_1N` are those of tokens
    in one row, as `weighted_first` orders them: chunks behind the last weight are left out, and 0 in what is merged.
    """
    if count == 1:
        return add(carry, arrays)
    T = arrays[0].shape[1]
    chunk_T = -(-T // count)

    def padded(x: jax.Array) -> jax.Array:
        extra = chunk_T * count - T
        return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2))) if extra else x

    arrays = jax.tree.map(padded, arrays)
    if weights_1N is not None:
        used = -(-(weights_1N != 0).sum() // chunk_T)
        carry, merged = _over_first(used, chunk_T, add, carry, arrays)
        return carry, jax.tree.map(lambda x: x[:, :T], merged)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunk_T, count, *x.shape[2:]), 2, 0)

    def merge(chunks: jax.Array) -> jax.Array:
        x = jnp.moveaxis(chunks, 0, 2)
        return x.reshape(x.shape[0], chunk_T * count, *x.shape[3:])[:, :T]

    carry, chunks = jax.lax.scan(add, carry, jax.tree.map(split, arrays))
    return carry, jax.tree.map(merge, chunks)


def _over_first(used: jax.Array, size: int, add: Callable[..., Any], carry: Any, arrays: Any) -> tuple[Any, Any]:
    """`add` over the first `used` chunks, each `size` neighbours, in a loop of that length."""

    def chunk(number: jax.Array | int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1), arrays)

    def one(number: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, part = add(state[0], chunk(number))
        return carry, jax.tree.map(
            lambda whole, own: jax.lax.dynamic_update_slice_in_dim(whole, own, number * size, axis=1), state[1], part
        )

    like = arrays[0]  # zeros made like it vary over the devices of a shard_map as it does
    shapes = jax.eval_shape(add, carry, jax.eval_shape(lambda: chunk(0)))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros_like(like, shape=(1, like.shape[1], *x.shape[2:]), dtype=x.dtype), shapes)
    state: tuple[Any, Any] = jax.lax.fori_loop(0, used, one, (carry, zeros))
    return state
