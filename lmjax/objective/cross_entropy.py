"""Cross-entropy against a vocabulary, in float32, without ever holding all logits at once.

In: hidden states, the head's matrix, targets and weights. Out: the loss as (sum, weight). The tokens are cut into
chunks; each chunk's logits are made, used for the loss and for both gradients, and dropped.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmjax.model.language_model import LOGITS_AT_ONCE
from lmjax.model.sharding_context import constrain
from lmjax.objective.chunks import chunk_count, chunk_logits, over_chunks
from lmjax.objective.weighted import Weighted


class Terms(NamedTuple):
    """How the loss is made; `vocab` is the number of real rows of the head, the rest being padding."""

    vocab: int
    z_loss: float
    label_smoothing: float
    chunks: int


def cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    at_once: int = LOGITS_AT_ONCE,
    valid_vocab: int | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    """Weighted cross-entropy, in nats per unit of weight.

    `z_loss` adds z_loss x log(Z)^2 (Chowdhery et al. 2022, section 5), `label_smoothing` spreads so much of each
    target over the vocabulary, `chunk` and `at_once` say how many logits exist at once (see `chunk_count`), and rows
    of the head from `valid_vocab` on are left out of the softmax. The metrics are `cross_entropy`, without the extra
    terms, and `accuracy`. Only the loss has a gradient, and only with respect to the hidden states and the head.
    """
    vocab = valid_vocab or head_VD.shape[0]
    B, T = weights_BT.shape
    chunks = chunk_count(B, T, head_VD.shape[0], chunk, at_once)
    terms = Terms(vocab, z_loss, label_smoothing, chunks)
    head = constrain(head_VD.astype(hidden_BTD.dtype), "vocab", "act_embed")  # gathered once for all chunks
    weights_BT = weights_BT.astype(jnp.float32)
    loss, entropy, correct = _sums(terms, hidden_BTD, head, targets_BT, weights_BT)
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

    def add(total: jax.Array, cut: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + _chunk(terms, head, *cut)[0], None

    total, _ = over_chunks(terms.chunks, add, jnp.zeros_like(weights, shape=3), (hidden, targets, weights))
    return total[0], total[1], total[2]


def _forward(
    terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """Also gives the gradients for a cotangent of 1, so that the backward pass makes no logits a second time."""
    Carry = tuple[jax.Array, jax.Array]

    def add(carry: Carry, cut: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
        total, grad_head_DV = carry
        sums, slope_BTV = _chunk(terms, head, *cut)
        slope_BTV = slope_BTV.astype(head.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", slope_BTV, head)
        grad_head_DV += jnp.einsum("btd,btv->dv", cut[0], slope_BTV, preferred_element_type=jnp.float32)
        return (total + sums, grad_head_DV), grad_hidden

    # [D, V] and not [V, D], so that the slopes need no transposed copy where a compiler (the CPU's) would make one.
    zeros = jnp.zeros_like(head, shape=head.shape[::-1], dtype=jnp.float32)
    start = (jnp.zeros_like(weights, shape=3), zeros)
    (total, grad_head_DV), grad_hidden = over_chunks(terms.chunks, add, start, (hidden, targets, weights))
    return (total[0], total[1], total[2]), (grad_hidden, grad_head_DV.T.astype(head.dtype))


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
