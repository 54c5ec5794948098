"""The losses of fine-tuning tasks on a model: texts with classes or scores, choices, and embeddings of texts.

In: a batch of rows [B, T], or [B, K, T] with K rows for each example, `labels` and `label_weights` [B]. Out: functions
(params, batch, rng) -> (loss, metrics), and what the model says of each example, from which both losses and predictions
are made.
"""

from __future__ import annotations

from typing import Any

import jax

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, SEGMENTS, TARGETS, TOKENS, Batch
from lmjax.model.heads import HEAD, TRUNK, TaskModel, read
from lmjax.model.outputs import Outputs
from lmjax.model.transformer import Transformer
from lmjax.objective.classification import (
    choice_scores,
    class_loss,
    class_weighted,
    cosines,
    language_weights,
    row_weights,
    score_loss,
    unit,
    with_language,
)
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.options import options_as_rows
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary


def text_outputs(
    model: TaskModel, params: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[jax.Array, Outputs]:
    """The head's numbers of each text, float32 [B, C], and the hidden states of its rows.

    Of rows [B, K, T], such as both orders of two texts, the hidden states that the head reads are added (Radford et al.
    2018, section 3.3): its products add up, and the bias is in their sum once.
    """
    rows = _rows(batch)
    outputs = model.trunk.hidden(params[TRUNK], rows, rng)
    numbers_NC = model.on_hidden(params, outputs.hidden, rows[SEGMENTS], rng)
    if batch[TOKENS].ndim == 2:
        return numbers_NC, outputs
    B, K, _ = batch[TOKENS].shape
    return numbers_NC.reshape(B, K, -1).sum(axis=1) - (K - 1) * params[HEAD]["bias"][None], outputs


def option_scores(
    model: TaskModel, params: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[jax.Array, Outputs]:
    """A score of each option, float32 [B, K], that of a missing one far below all others; and the hidden states."""
    rows = _rows(batch)
    outputs = model.trunk.hidden(params[TRUNK], rows, rng)
    numbers_N1 = model.on_hidden(params, outputs.hidden, rows[SEGMENTS], rng)
    return choice_scores(numbers_N1.reshape(batch[TOKENS].shape[:2]), batch), outputs


def embeddings(
    model: Transformer, params: Any, batch: Batch, rng: jax.Array | None = None
) -> tuple[jax.Array, Outputs]:
    """The mean of each row's real tokens as a vector of length 1, float32 [B, K, D] or [B, D]; and the hidden states.

    Reimers and Gurevych 2019, section 3. [CLS] and [SEP] are real tokens.
    """
    rows = _rows(batch)
    outputs = model.hidden(params, rows, rng)
    vectors_ND = unit(read(outputs.hidden, rows[SEGMENTS], "mean"))
    return vectors_ND.reshape(*batch[TOKENS].shape[:-1], -1), outputs


def text_loss(
    model: TaskModel,
    *,
    scores: bool = False,
    class_weights: tuple[float, ...] = (),
    language: float = 0.0,
    entries: int | None = None,
) -> LossFunction:
    """Cross-entropy of classes with factors of theirs, or the mean squared error of `scores`.

    `language` adds so much of the loss of the next token over the `entries` of the tokenizer (GPT-1's lambda).
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        numbers_BC, outputs = text_outputs(model, params, batch, rng)
        labels_B, rows_B = batch[LABELS], batch[LABEL_WEIGHTS]
        weights_B = rows_B if scores else class_weighted(labels_B, rows_B, class_weights)
        if scores:
            loss, metrics = score_loss(numbers_BC[:, 0], labels_B, weights_B)
        else:
            loss, metrics = class_loss(numbers_BC, labels_B, weights_B, rows_B)
        return _with_language(model, params, batch, outputs, weights_B, loss, metrics, language, entries)

    return loss_fn


def choice_loss(model: TaskModel, *, language: float = 0.0, entries: int | None = None) -> LossFunction:
    """Cross-entropy of the right option among those of its example; `language` as in `text_loss`."""

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        scores_BK, outputs = option_scores(model, params, batch, rng)
        weights_B = batch[LABEL_WEIGHTS]
        loss, metrics = class_loss(scores_BK, batch[LABELS], weights_B)
        return _with_language(model, params, batch, outputs, weights_B, loss, metrics, language, entries)

    return loss_fn


def embedding_loss(model: Transformer, highest: float) -> LossFunction:
    """The mean squared error of the cosine of an example's two texts against its label divided by `highest`."""

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        vectors_B2D, outputs = embeddings(model, params, batch, rng)
        weights_B = batch[LABEL_WEIGHTS]
        cosines_B = cosines(vectors_B2D[:, 0], vectors_B2D[:, 1])
        loss, metrics = score_loss(cosines_B, batch[LABELS] / highest, weights_B)
        return with_auxiliary(loss, metrics, outputs.aux, row_weights(batch, weights_B))

    return loss_fn


def _rows(batch: Batch) -> Batch:
    return batch if batch[TOKENS].ndim == 2 else options_as_rows(batch)


def _with_language(
    model: TaskModel,
    params: Any,
    batch: Batch,
    outputs: Outputs,
    weights_B: jax.Array,
    loss: Weighted,
    metrics: Metrics,
    language: float,
    entries: int | None,
) -> tuple[Weighted, Metrics]:
    """The loss with the model's auxiliary losses and, where `language` is not 0, with that of the next token."""
    rows = _rows(batch)
    weights_N = weights_B if batch[TOKENS].ndim == 2 else row_weights(batch, weights_B)
    loss, metrics = with_auxiliary(loss, metrics, outputs.aux, weights_N)
    if not language:
        return loss, metrics
    own, _ = cross_entropy(
        outputs.hidden,
        model.trunk.head(params[TRUNK]),
        rows[TARGETS],
        language_weights(rows, weights_N),
        chunking=model.trunk.chunking,
        valid_vocab=entries,
    )
    return with_language(loss, metrics, own, language)
