"""Losses over ranked answers: a reward model's, and DPO's. A batch's fields are [B, K, T]: K answers to each prompt."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.data.conversation_rows import RANKS
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.outputs import Auxiliary
from lmjax.objective.log_probs import token_log_probs
from lmjax.objective.options import options_as_rows, present_options
from lmjax.objective.policy import dpo_loss
from lmjax.objective.rankings import answer_weights, ranking_loss
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary


def answer_scores(model: ScalarModel, params: Any, batch: Batch) -> jax.Array:
    """The reward model's score of each answer, [B, K], without dropout."""
    return model.scores(params, options_as_rows(batch)).reshape(batch[TOKENS].shape[:2])


def answer_log_probs(
    model: LanguageModel, params: Any, batch: Batch, rng: jax.Array | None = None, valid_vocab: int | None = None
) -> tuple[jax.Array, Auxiliary]:
    """The log-probability of each answer given its prompt, end-of-text included, [B, K]; and the auxiliary losses."""
    rows = options_as_rows(batch)
    hidden_NTD, aux = model.hidden(params, rows, rng)
    log_probs_NT, _ = token_log_probs(
        hidden_NTD,
        model.head(params),
        rows[TARGETS],
        rows[WEIGHTS],
        valid_vocab=valid_vocab,
        chunking=model.chunking,
    )
    log_probs_N = jnp.where(rows[WEIGHTS] > 0, log_probs_NT, 0.0).sum(axis=1)
    return log_probs_N.reshape(batch[TOKENS].shape[:2]), aux


def reward_loss(
    model: ScalarModel, *, label_smoothing: float = 0.0, margin: float = 0.0, centring: float = 0.0
) -> LossFunction:
    """The ranking loss of a reward model's scores, with a margin of `margin` x (difference of the two ranks)."""

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        ranks_BK = batch[RANKS]
        steps_BKK = (ranks_BK[:, None, :] - ranks_BK[:, :, None]).astype(jnp.float32)
        scores_N, aux = model.scores_and_aux(params, options_as_rows(batch), rng)
        scores_BK = scores_N.reshape(ranks_BK.shape)
        present_BK = present_options(batch)
        loss, metrics = ranking_loss(
            scores_BK,
            ranks_BK,
            present_BK,
            margins_BKK=margin * steps_BKK if margin else None,
            label_smoothing=label_smoothing,
            centring=centring,
        )
        return with_auxiliary(loss, metrics, aux, answer_weights(ranks_BK, present_BK).reshape(-1))

    return loss_fn


def preference_loss(
    model: LanguageModel, reference: Any, *, beta: float, label_smoothing: float = 0.0, valid_vocab: int | None = None
) -> LossFunction:
    """DPO's loss; `reference` are the parameters of the reference policy, which is evaluated without dropout.

    Raises UserError for a model that sees the tokens it predicts.
    """
    model.require_decoder("DPO")

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        log_probs_BK, aux = answer_log_probs(model, params, batch, rng, valid_vocab)
        reference_BK, _ = answer_log_probs(model, reference, batch, None, valid_vocab)
        ranks_BK, present_BK = batch[RANKS], present_options(batch)
        loss, metrics = dpo_loss(
            log_probs_BK, reference_BK, ranks_BK, present_BK, beta=beta, label_smoothing=label_smoothing
        )
        return with_auxiliary(loss, metrics, aux, answer_weights(ranks_BK, present_BK).reshape(-1))

    return loss_fn
