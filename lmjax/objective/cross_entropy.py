"""Cross-entropy against a vocabulary, in float32, without ever holding all logits at once.

In: hidden states, the head, targets and weights. Out: the loss as (sum, weight). The tokens are split into
chunks; each chunk's logits are computed once, for the loss and for both gradients, and freed.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.layers import before_cap
from lmjax.model.logit_head import LogitHead
from lmjax.model.transformer import Chunking
from lmjax.objective.chunks import (
    chunk_count,
    chunk_logits,
    gathered_head,
    gathered_head_gradient,
    in_one_row,
    logit_gradients,
    over_chunks,
    weighted_first,
    zero_head_gradient,
)
from lmjax.objective.weighted import Metrics, Weighted


class Terms(NamedTuple):
    """The static arguments of the loss; `vocab` is the number of the table's rows that are no padding."""

    vocab: int
    z_loss: float
    label_smoothing: float
    chunks: int
    vocab_last: bool
    one_row: bool  # tokens with a weight first; see `weighted_first`


def cross_entropy(
    hidden_BTD: jax.Array,
    head: LogitHead,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunking: Chunking = Chunking(),
    valid_vocab: int | None = None,
) -> tuple[Weighted, Metrics]:
    """Weighted cross-entropy, in nats per unit of weight.

    `z_loss` adds z_loss x log(Z)^2 (Chowdhery et al. 2022, section 5), `label_smoothing` is the probability that is
    spread evenly over the vocabulary, `chunking` limits the logits that exist at once (see `chunk_count`), and the
    softmax leaves out the table's rows from `valid_vocab` on. The metrics are `cross_entropy`, without the extra terms,
    and `accuracy`. Only the loss has a gradient, and only with respect to the hidden states and the head.
    """
    V = head.table.shape[0]
    vocab = valid_vocab or V
    weights_BT = weights_BT.astype(jnp.float32)
    hidden, targets, weights, weight = hidden_BTD, targets_BT, weights_BT, weights_BT.sum()
    order = weighted_first(weights_BT, chunking)
    if order is not None:
        hidden, targets, weights = (in_one_row(order, x_BT) for x_BT in (hidden, targets, weights))
    B, T = weights.shape
    chunks = chunk_count(B, T, V, chunking)
    terms = Terms(vocab, z_loss, label_smoothing, chunks, chunking.vocab_last, order is not None)
    loss, nll, correct = _sums(terms, hidden, head, targets, weights)
    return Weighted(loss, weight), {
        "cross_entropy": Weighted(nll, weight),
        "accuracy": Weighted(correct, weight),
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    terms: Terms, hidden: jax.Array, head: LogitHead, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all tokens of the loss, of the plain cross-entropy and of correct predictions."""
    gathered = gathered_head(head, hidden.dtype)

    def add(total: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + _chunk(terms, gathered, *chunk)[0], None

    one_row = weights if terms.one_row else None
    total, _ = over_chunks(terms.chunks, add, jnp.zeros_like(weights, shape=3), (hidden, targets, weights), one_row)
    return total[0], total[1], total[2]


def _forward(
    terms: Terms, hidden: jax.Array, head: LogitHead, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, LogitHead]]:
    """Also returns the gradients for a cotangent of 1, so that the backward pass computes no logits again."""
    Carry = tuple[jax.Array, LogitHead]
    gathered = gathered_head(head, hidden.dtype)

    def add(carry: Carry, chunk: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
        total, dhead = carry
        sums, dlogits_BtV = _chunk(terms, gathered, *chunk)
        dhidden_BtD, dhead = logit_gradients(gathered, chunk[0], dlogits_BtV, dhead, terms.vocab_last)
        return (total + sums, dhead), dhidden_BtD

    zeros = (jnp.zeros_like(weights, shape=3), zero_head_gradient(head, terms.vocab_last))
    one_row = weights if terms.one_row else None
    (total, dhead), dhidden = over_chunks(terms.chunks, add, zeros, (hidden, targets, weights), one_row)
    return (total[0], total[1], total[2]), (dhidden, gathered_head_gradient(dhead, head, terms.vocab_last))


def _backward(
    terms: Terms, gradients: tuple[jax.Array, LogitHead], cotangents: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    dhidden, dhead = gradients
    scale = cotangents[0]
    dhidden, dhead = jax.tree.map(lambda x: x * scale.astype(x.dtype), (dhidden, dhead))
    return dhidden, dhead, None, None


_sums.defvjp(_forward, _backward)


def _chunk(
    terms: Terms, head: LogitHead, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The three sums of a chunk, and the gradient of the loss for its logits before their cap, [B, t, V]."""
    logits, column = chunk_logits(head, hidden, terms.vocab)
    largest = logits.max(-1)
    shifted = jnp.exp(logits - largest[..., None])
    norm = shifted.sum(-1)
    log_norm = jnp.log(norm) + largest
    is_target = column == targets[..., None]
    target_logit = jnp.where(is_target, logits, 0.0).sum(-1)
    nll = log_norm - target_logit
    smoothing = terms.label_smoothing
    loss = nll + terms.z_loss * log_norm**2
    label = is_target.astype(jnp.float32)
    if smoothing:
        mean_logit = jnp.where(column < terms.vocab, logits, 0.0).sum(-1) / terms.vocab
        loss += smoothing * (target_logit - mean_logit)
        label = (1 - smoothing) * label + (column < terms.vocab) * (smoothing / terms.vocab)
    probability = shifted * ((1 + 2 * terms.z_loss * log_norm) / norm)[..., None]
    dlogits = before_cap(logits, head.cap, (probability - label) * weights[..., None])
    sums = jnp.stack([(loss * weights).sum(), (nll * weights).sum(), ((target_logit >= largest) * weights).sum()])
    return sums, dlogits
