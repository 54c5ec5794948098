"""The log-probability of each target token, in float32, without ever holding all logits at once.

In: hidden states, the head and tokens. Out: an array over tokens, for the losses that compare policies. The
tokens are split into chunks, whose logits are computed, used and freed, and computed again for the gradient.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lmjax.model.layers import before_cap
from lmjax.model.logit_head import LogitHead
from lmjax.model.transformer import Chunking
from lmjax.objective.chunks import (
    chunk_count,
    chunk_logits,
    gathered_head,
    gathered_head_gradient,
    in_one_row,
    in_rows,
    logit_gradients,
    over_chunks,
    weighted_first,
    zero_head_gradient,
)


class Terms(NamedTuple):
    """The static arguments; `vocab` is the number of the table's rows that are no padding."""

    vocab: int
    temperature: float
    chunks: int
    vocab_last: bool
    one_row: bool  # tokens with a weight first; see `weighted_first`


def token_log_probs(
    hidden_BTD: jax.Array,
    head: LogitHead,
    targets_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    valid_vocab: int | None = None,
    chunking: Chunking = Chunking(),
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of p at each token, float32 [B, T] each, in nats.

    p is the softmax of logits / `temperature`, from which the sampler draws; it leaves out the table's rows from
    `valid_vocab` on. `chunking` limits the logits that exist at once; see `chunk_count`. What the caller does not use
    has weight 0, and may be left out, as 0; other weights are all alike here.
    """
    V = head.table.shape[0]
    order = weighted_first(weights_BT, chunking)
    weights = jnp.ones(targets_BT.shape, jnp.float32) if weights_BT is None else weights_BT.astype(jnp.float32)
    hidden, targets = hidden_BTD, targets_BT
    if order is not None:
        hidden, targets, weights = (in_one_row(order, x_BT) for x_BT in (hidden, targets, weights))
    B, T = targets.shape
    chunks = chunk_count(B, T, V, chunking)
    terms = Terms(valid_vocab or V, temperature or 1.0, chunks, chunking.vocab_last, order is not None)
    found = _log_probs(terms, hidden, head, targets, weights)
    if order is None:
        return found
    log_probs_BT, entropy_BT = (in_rows(order, x_1N, len(targets_BT)) for x_1N in found)
    return log_probs_BT, entropy_BT


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(
    terms: Terms, hidden: jax.Array, head: LogitHead, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    log_p_target, entropy, _ = _evaluate(terms, hidden, head, targets, weights)
    return log_p_target, entropy


def _evaluate(
    terms: Terms, hidden: jax.Array, head: LogitHead, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p(target), the entropy and the logarithm of the softmax's denominator at each token."""
    gathered = gathered_head(head, hidden.dtype)

    def evaluate(_: tuple[()], chunk: tuple[jax.Array, ...]) -> tuple[tuple[()], tuple[jax.Array, ...]]:
        hidden_BtD, targets_Bt = chunk
        logits_BtV, column_BtV = _logits(terms, gathered, hidden_BtD)
        log_norm_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
        target_logit_Bt = jnp.where(column_BtV == targets_Bt[..., None], logits_BtV, 0.0).sum(axis=-1)
        log_p_target_Bt = target_logit_Bt - log_norm_Bt
        log_p_BtV = logits_BtV - log_norm_Bt[..., None]
        entropy_Bt = -jnp.where(column_BtV < terms.vocab, jnp.exp(log_p_BtV) * log_p_BtV, 0.0).sum(axis=-1)
        return (), (log_p_target_Bt, entropy_Bt, log_norm_Bt)

    return over_chunks(terms.chunks, evaluate, (), (hidden, targets), weights if terms.one_row else None)[1]


def _forward(
    terms: Terms, hidden: Any, head: Any, targets: Any, weights: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    arrays = jax.tree.map(lambda leaf: leaf.value, (hidden, head, targets, weights))
    log_p_target, entropy, log_norm = _evaluate(terms, *arrays)
    return (log_p_target, entropy), (*arrays, log_norm, entropy)


def _backward(
    terms: Terms, residuals: tuple[Any, ...], cotangents: tuple[Any, Any]
) -> tuple[jax.Array, LogitHead, None, None]:
    hidden, head, targets, weights, log_norm, entropy = residuals
    has_entropy_gradient = not isinstance(cotangents[1], SymbolicZero)
    gathered = gathered_head(head, hidden.dtype)
    cotangent_arrays = [jnp.zeros_like(log_norm) if isinstance(g, SymbolicZero) else g for g in cotangents]

    def add(dhead: LogitHead, chunk: tuple[jax.Array, ...]) -> tuple[LogitHead, jax.Array]:
        hidden_BtD, targets_Bt, *per_token = chunk
        log_norm_Bt1, entropy_Bt1, dlog_p_Bt1, dentropy_Bt1 = (x[..., None] for x in per_token)
        logits_BtV, column_BtV = _logits(terms, gathered, hidden_BtD)
        log_p_BtV = logits_BtV - log_norm_Bt1
        p_BtV = jnp.exp(log_p_BtV)
        is_target_BtV = (column_BtV == targets_Bt[..., None]).astype(jnp.float32)
        dlogits_BtV = dlog_p_Bt1 * (is_target_BtV - p_BtV)
        if has_entropy_gradient:
            neg_entropy_grad_BtV = jnp.where(column_BtV < terms.vocab, p_BtV * (log_p_BtV + entropy_Bt1), 0.0)
            dlogits_BtV -= dentropy_Bt1 * neg_entropy_grad_BtV
        dlogits_BtV /= terms.temperature
        dlogits_BtV = before_cap(logits_BtV * terms.temperature, gathered.cap, dlogits_BtV)
        dhidden_BtD, dhead = logit_gradients(gathered, hidden_BtD, dlogits_BtV, dhead, terms.vocab_last)
        return dhead, dhidden_BtD

    arrays = (hidden, targets, log_norm, entropy, *cotangent_arrays)
    zeros, one_row = zero_head_gradient(head, terms.vocab_last), weights if terms.one_row else None
    dhead, dhidden = over_chunks(terms.chunks, add, zeros, arrays, one_row)
    return dhidden, gathered_head_gradient(dhead, head, terms.vocab_last), None, None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(terms: Terms, head: LogitHead, hidden_BtD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`chunk_logits`, divided by the temperature."""
    logits_BtV, column_BtV = chunk_logits(head, hidden_BtD, terms.vocab)
    return (logits_BtV if terms.temperature == 1.0 else logits_BtV / terms.temperature), column_BtV
