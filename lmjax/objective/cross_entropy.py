"""Cross-entropy against a vocabulary, in float32, without ever holding all logits at once.

In: hidden states, the head's matrix, targets and weights. Out: the loss as (sum, weight). The tokens are cut into
chunks; each chunk's logits are made, used for the loss and for both gradients, and dropped.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.language_model import Chunking
from lmjax.objective.chunks import (
    chunk_count,
    chunk_logits,
    head_gradient,
    no_head_gradient,
    over_chunks,
    whole_gradient,
    whole_head,
)
from lmjax.objective.weighted import Metrics, Weighted


class Terms(NamedTuple):
    """How the loss is made; `vocab` is the number of real rows of the head, the rest being padding."""

    vocab: int
    z_loss: float
    label_smoothing: float
    chunks: int
    vocab_last: bool


def cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunking: Chunking = Chunking(),
    valid_vocab: int | None = None,
) -> tuple[Weighted, Metrics]:
    """Weighted cross-entropy, in nats per unit of weight.

    `z_loss` adds z_loss x log(Z)^2 (Chowdhery et al. 2022, section 5), `label_smoothing` spreads so much of each
    target over the vocabulary, `chunking` says how many logits exist at once (see `chunk_count`), and rows of the head
    from `valid_vocab` on are left out of the softmax. The metrics are `cross_entropy`, without the extra terms, and
    `accuracy`. Only the loss has a gradient, and only with respect to the hidden states and the head.
    """
    vocab = valid_vocab or head_VD.shape[0]
    B, T = weights_BT.shape
    chunks = chunk_count(B, T, head_VD.shape[0], chunking)
    terms = Terms(vocab, z_loss, label_smoothing, chunks, chunking.vocab_last)
    weights_BT = weights_BT.astype(jnp.float32)
    loss, entropy, correct = _sums(terms, hidden_BTD, head_VD, targets_BT, weights_BT)
    weight = weights_BT.sum()
    return Weighted(loss, weight), {
        "cross_entropy": Weighted(entropy, weight),
        "accuracy": Weighted(correct, weight),
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(
    terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over all tokens of the loss, of the plain cross-entropy and of correct predictions."""
    whole = whole_head(head, hidden.dtype)

    def add(total: jax.Array, cut: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + _chunk(terms, whole, *cut)[0], None

    total, _ = over_chunks(terms.chunks, add, jnp.zeros_like(weights, shape=3), (hidden, targets, weights))
    return total[0], total[1], total[2]


def _forward(
    terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Also gives the gradients for a cotangent of 1, so that the backward pass makes no logits a second time."""
    Carry = tuple[jax.Array, jax.Array]
    whole = whole_head(head, hidden.dtype)

    def add(carry: Carry, cut: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
        total, grad_head = carry
        sums, slope_BTV = _chunk(terms, whole, *cut)
        slope_BTV = slope_BTV.astype(whole.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", slope_BTV, whole)
        return (total + sums, grad_head + head_gradient(cut[0], slope_BTV, terms.vocab_last)), grad_hidden

    start = (jnp.zeros_like(weights, shape=3), no_head_gradient(head, terms.vocab_last))
    (total, grad_head), grad_hidden = over_chunks(terms.chunks, add, start, (hidden, targets, weights))
    return (total[0], total[1], total[2]), (grad_hidden, whole_gradient(grad_head, head, terms.vocab_last))


def _backward(
    terms: Terms, gradients: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, ...]:
    grad_hidden, grad_head = gradients
    scale = cotangents[0]
    return grad_hidden * scale.astype(grad_hidden.dtype), grad_head * scale.astype(grad_head.dtype), None, None


_sums.defvjp(_forward, _backward)


def _chunk(
    terms: Terms, head: jax.Array, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The three sums of one chunk, and the gradient of the loss with respect to its logits, [B, t, V]."""
    logits, column = chunk_logits(head, hidden, terms.vocab)
    top = logits.max(-1)
    shifted = jnp.exp(logits - top[..., None])
    norm = shifted.sum(-1)
    log_norm = jnp.log(norm) + top
    hit = column == targets[..., None]
    chosen = jnp.where(hit, logits, 0.0).sum(-1)
    entropy = log_norm - chosen
    smooth = terms.label_smoothing
    loss = entropy + terms.z_loss * log_norm**2
    target = hit.astype(jnp.float32)
    if smooth:
        mean = jnp.where(column < terms.vocab, logits, 0.0).sum(-1) / terms.vocab
        loss += smooth * (chosen - mean)
        target = (1 - smooth) * target + (column < terms.vocab) * (smooth / terms.vocab)
    probability = shifted * ((1 + 2 * terms.z_loss * log_norm) / norm)[..., None]
    slope = (probability - target) * weights[..., None]
    sums = jnp.stack([(loss * weights).sum(), (entropy * weights).sum(), ((chosen >= top) * weights).sum()])
    return sums, slope
