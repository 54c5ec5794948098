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

from lmjax.model.language_model import LOGITS_AT_ONCE
from lmjax.model.sharding_context import constrain
from lmjax.objective.chunks import chunk_count, chunk_logits, over_chunks


class Terms(NamedTuple):
    """How tokens are read; `vocab` is the number of real rows of the head, the rest being padding."""

    vocab: int
    temperature: float
    chunks: int


def token_log_probs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    *,
    temperature: float = 1.0,
    valid_vocab: int | None = None,
    chunk: int | None = None,
    at_once: int = LOGITS_AT_ONCE,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of p at each token, float32 [B, T] each, in nats.

    p is the softmax of the logits over `temperature`, as the sampler draws from it; rows of the head from
    `valid_vocab` on are left out. `chunk` and `at_once` say how many logits exist at once; see `chunk_count`.
    """
    B, T, _ = hidden_BTD.shape
    V = head_VD.shape[0]
    terms = Terms(valid_vocab or V, temperature or 1.0, chunk_count(B, T, V, chunk, at_once))
    head_VD = constrain(head_VD.astype(hidden_BTD.dtype), "vocab", "act_embed")  # gathered once for all chunks
    return _log_probs(terms, hidden_BTD, head_VD, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen, entropy, _ = _read(terms, hidden, head, targets)
    return chosen, entropy


def _read(
    terms: Terms, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(target), the entropy and the logarithm of the softmax's denominator at each token."""

    def read(_: tuple[()], cut: tuple[jax.Array, ...]) -> tuple[tuple[()], tuple[jax.Array, ...]]:
        hidden_BtD, targets_Bt = cut
        logits_BtV, column_BtV = _logits(terms, head, hidden_BtD)
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
    weights = [jnp.zeros_like(log_norm) if isinstance(g, SymbolicZero) else g for g in cotangents]

    def add(grad_head_DV: jax.Array, cut: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden_BtD, targets_Bt, *of_tokens = cut
        log_norm_Bt1, entropy_Bt1, weight_Bt1, entropy_weight_Bt1 = (x[..., None] for x in of_tokens)
        logits_BtV, column_BtV = _logits(terms, head, hidden_BtD)
        log_p_BtV = logits_BtV - log_norm_Bt1
        p_BtV = jnp.exp(log_p_BtV)
        hit_BtV = (column_BtV == targets_Bt[..., None]).astype(jnp.float32)
        slope_BtV = weight_Bt1 * (hit_BtV - p_BtV)
        if of_entropy:
            rise_BtV = jnp.where(column_BtV < terms.vocab, p_BtV * (log_p_BtV + entropy_Bt1), 0.0)
            slope_BtV -= entropy_weight_Bt1 * rise_BtV
        slope_BtV = (slope_BtV / terms.temperature).astype(head.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", slope_BtV, head)
        grad_head_DV += jnp.einsum("btd,btv->dv", hidden_BtD, slope_BtV, preferred_element_type=jnp.float32)
        return grad_head_DV, grad_hidden

    start_DV = jnp.zeros_like(head, shape=head.shape[::-1], dtype=jnp.float32)  # as in `cross_entropy`
    arrays = (hidden, targets, log_norm, entropy, *weights)
    grad_head_DV, grad_hidden = over_chunks(terms.chunks, add, start_DV, arrays)
    return grad_hidden, grad_head_DV.T.astype(head.dtype), None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(terms: Terms, head_VD: jax.Array, hidden_BtD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `chunk_logits` gives, over the temperature."""
    logits_BtV, column_BtV = chunk_logits(head_VD, hidden_BtD, terms.vocab)
    return (logits_BtV if terms.temperature == 1.0 else logits_BtV / terms.temperature), column_BtV
