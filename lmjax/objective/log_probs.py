"""The log-probability of each given token, in float32, without ever holding all logits at once.

In: hidden states, the head's matrix and tokens. Out: an array over tokens, for the losses that compare policies. The
tokens are cut into chunks whose logits are made, used and dropped, and made again for the gradient.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

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


class Terms(NamedTuple):
    """How tokens are read; `vocab` is the number of real rows of the head, the rest being padding."""

    vocab: int
    temperature: float
    chunks: int
    vocab_last: bool


def token_log_probs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    *,
    temperature: float = 1.0,
    valid_vocab: int | None = None,
    chunking: Chunking = Chunking(),
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of p at each token, float32 [B, T] each, in nats.

    p is the softmax of the logits over `temperature`, as the sampler draws from it; rows of the head from
    `valid_vocab` on are left out. `chunking` says how many logits exist at once; see `chunk_count`.
    """
    B, T, _ = hidden_BTD.shape
    V = head_VD.shape[0]
    terms = Terms(valid_vocab or V, temperature or 1.0, chunk_count(B, T, V, chunking), chunking.vocab_last)
    return _log_probs(terms, hidden_BTD, head_VD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen, entropy, _ = _read(terms, hidden, head, targets)
    return chosen, entropy


def _read(
    terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(target), the entropy and the logarithm of the softmax's denominator at each token."""
    whole = whole_head(head, hidden.dtype)

    def read(_: tuple[()], cut: tuple[jax.Array, ...]) -> tuple[tuple[()], tuple[jax.Array, ...]]:
        hidden_BtD, targets_Bt = cut
        logits_BtV, column_BtV = _logits(terms, whole, hidden_BtD)
        log_norm_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        chosen_Bt = jnp.where(column_BtV == targets_Bt[..., None], logits_BtV, 0.0).sum(axis=-1) - log_norm_Bt
        log_p_BtV = logits_BtV - log_norm_Bt[..., None]
        entropy_Bt = -jnp.where(column_BtV < terms.vocab, jnp.exp(log_p_BtV) * log_p_BtV, 0.0).sum(axis=-1)
        return (), (chosen_Bt, entropy_Bt, log_norm_Bt)

    return over_chunks(terms.chunks, read, (), (hidden, targets))[1]


def _forward(
    terms: Terms, hidden: Any, head: Any, targets: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    arrays = hidden.value, head.value, targets.value
    chosen, entropy, log_norm = _read(terms, *arrays)
    return (chosen, entropy), (*arrays, log_norm, entropy)


def _backward(
    terms: Terms, kept: tuple[jax.Array, ...], cotangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, targets, log_norm, entropy = kept
    of_entropy = not isinstance(cotangents[1], SymbolicZero)
    whole = whole_head(head, hidden.dtype)
    weights = [jnp.zeros_like(log_norm) if isinstance(g, SymbolicZero) else g for g in cotangents]

    def add(grad_head: jax.Array, cut: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden_BtD, targets_Bt, *of_tokens = cut
        log_norm_Bt1, entropy_Bt1, weight_Bt1, entropy_weight_Bt1 = (x[..., None] for x in of_tokens)
        logits_BtV, column_BtV = _logits(terms, whole, hidden_BtD)
        log_p_BtV = logits_BtV - log_norm_Bt1
        p_BtV = jnp.exp(log_p_BtV)
        hit_BtV = (column_BtV == targets_Bt[..., None]).astype(jnp.float32)
        slope_BtV = weight_Bt1 * (hit_BtV - p_BtV)
        if of_entropy:
            rise_BtV = jnp.where(column_BtV < terms.vocab, p_BtV * (log_p_BtV + entropy_Bt1), 0.0)
            slope_BtV -= entropy_weight_Bt1 * rise_BtV
        slope_BtV = (slope_BtV / terms.temperature).astype(whole.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", slope_BtV, whole)
        return grad_head + head_gradient(hidden_BtD, slope_BtV, terms.vocab_last), grad_hidden

    arrays = (hidden, targets, log_norm, entropy, *weights)
    grad_head, grad_hidden = over_chunks(terms.chunks, add, no_head_gradient(head, terms.vocab_last), arrays)
    return grad_hidden, whole_gradient(grad_head, head, terms.vocab_last), None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(terms: Terms, head_VD: jax.Array, hidden_BtD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `chunk_logits` gives, over the temperature."""
    logits_BtV, column_BtV = chunk_logits(head_VD, hidden_BtD, terms.vocab)
    return (logits_BtV if terms.temperature == 1.0 else logits_BtV / terms.temperature), column_BtV
