"""Masked language modelling, and the prediction whether two texts follow each other (Devlin et al. 2019, section 3.1).

In: a batch's hidden states. Out: losses and metrics as (sum, weight). Only the predicted columns of a row reach the
vocabulary: their hidden states are gathered first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, PREDICTED, PREDICTED_TARGETS, PREDICTED_WEIGHTS, SEGMENTS, Batch
from lmjax.model.heads import TRUNK, TaskModel
from lmjax.model.transformer import Transformer
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.means import scaled_to
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary


def masked_loss(model: Transformer, **options: Any) -> LossFunction:
    """A function (params, batch, rng) -> (loss, metrics), all as (sum, weight); `rng` None means no dropout.

    `options` are z_loss, label_smoothing and valid_vocab of `cross_entropy`. The loss is the mean over predicted
    tokens; metrics are `masked_loss`, without the extra terms, and `masked_accuracy`.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        hidden_BTD, aux = model.hidden(params, batch, rng)
        loss, metrics = _of_predicted(model, params, hidden_BTD, batch, options)
        return with_auxiliary(loss, metrics, aux, batch[PREDICTED_WEIGHTS])

    return loss_fn


def masked_and_next_loss(model: TaskModel, **options: Any) -> LossFunction:
    """`masked_loss` plus the cross-entropy of the pairs' labels, each a mean of its own.

    The labels' weights sum up to those of the predicted tokens in the whole batch: `weighed` sees to it. Further
    metrics are `next_sentence_loss` and `next_sentence_accuracy`. The classifier has no dropout, as in BERT's code.
    """
    trunk = model.trunk

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        hidden_BTD, aux = trunk.hidden(params[TRUNK], batch, rng)
        loss, metrics = _of_predicted(trunk, params[TRUNK], hidden_BTD, batch, options)
        logits_BC, labels_B = model.on_hidden(params, hidden_BTD, batch[SEGMENTS]), batch[LABELS]
        nats_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_B)
        weights_B = batch[LABEL_WEIGHTS]
        right_B = (logits_BC.argmax(axis=-1) == labels_B).astype(jnp.float32)
        weight = weights_B.sum()
        metrics |= {
            "next_sentence_loss": Weighted(nats_B @ weights_B, weight),
            "next_sentence_accuracy": Weighted(right_B @ weights_B, weight),
        }
        both = Weighted(loss.sum + nats_B @ weights_B, loss.weight)
        return with_auxiliary(both, metrics, aux, batch[PREDICTED_WEIGHTS])

    return loss_fn


def weighed(batch: Batch) -> Batch:
    """The whole batch with label weights that sum up to the weight of its predicted tokens: a sum of two means."""
    total = batch[PREDICTED_WEIGHTS].sum()
    return batch | {LABEL_WEIGHTS: scaled_to(batch[LABEL_WEIGHTS], total)}


def _of_predicted(
    model: Transformer, params: Any, hidden_BTD: jax.Array, batch: Batch, options: dict[str, Any]
) -> tuple[Weighted, Metrics]:
    predicted_BPD = jnp.take_along_axis(hidden_BTD, batch[PREDICTED][..., None], axis=1)
    loss, metrics = cross_entropy(
        model.transformed(params, predicted_BPD),
        model.head(params),
        batch[PREDICTED_TARGETS],
        batch[PREDICTED_WEIGHTS],
        chunking=model.chunking,
        **options,
    )
    return loss, {"masked_loss": metrics["cross_entropy"], "masked_accuracy": metrics["accuracy"]}
