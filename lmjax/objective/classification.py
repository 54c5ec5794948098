"""Losses of labelled rows: classes, choices, scores and cosines, each a mean over rows; and GPT-1's auxiliary loss.

In: what a head gives of each row, labels and weights. Out: `Weighted` sums with the rows' weights, so that microbatches
and devices may cut the batch between any two rows; `label_weights` are 0 for rows that fill a batch up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from lmjax.data.batch import WEIGHTS, Batch
from lmjax.objective.options import present_options
from lmjax.objective.weighted import Metrics, Weighted

ABSENT = -1e30  # the score of an option that an example has not: its probability is 0, and no gradient is a NaN


def class_weighted(labels_B: jax.Array, weights_B: jax.Array, class_weights: tuple[float, ...]) -> jax.Array:
    """The weights of rows times the factor of their right class, [B]; without factors, the weights."""
    if not class_weights:
        return weights_B
    return weights_B * jnp.asarray(class_weights, jnp.float32)[jnp.clip(labels_B, 0, len(class_weights) - 1)]


def class_loss(
    outputs_BC: jax.Array, labels_B: jax.Array, weights_B: jax.Array, rows_B: jax.Array | None = None
) -> tuple[Weighted, Metrics]:
    """Cross-entropy of the right class, in nats. The metrics are it and the accuracy, with the weights `rows_B`.

    `rows_B` are `weights_B` without the factors of classes; None where there are none.
    """
    rows_B = weights_B if rows_B is None else rows_B
    labels_B = jnp.clip(labels_B, 0, outputs_BC.shape[1] - 1)
    nats_B = optax.softmax_cross_entropy_with_integer_labels(outputs_BC.astype(jnp.float32), labels_B)
    right_B = (outputs_BC.argmax(axis=1) == labels_B).astype(jnp.float32)
    rows = rows_B.sum()
    metrics = {"cross_entropy": Weighted(nats_B @ rows_B, rows), "accuracy": Weighted(right_B @ rows_B, rows)}
    return Weighted(nats_B @ weights_B, weights_B.sum()), metrics


def choice_scores(scores_BK: jax.Array, batch: Batch) -> jax.Array:
    """The scores of each example's options, as the outputs of classes: an option that is missing is never chosen."""
    return jnp.where(present_options(batch), scores_BK, ABSENT)


def score_loss(outputs_B: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> tuple[Weighted, Metrics]:
    """The mean squared error of scores."""
    loss = Weighted((outputs_B - labels_B) ** 2 @ weights_B, weights_B.sum())
    return loss, {"squared_error": loss}


def unit(vectors_BD: jax.Array) -> jax.Array:
    """Vectors of length 1, float32; one of length 0 stays, with a gradient of 0."""
    vectors_BD = vectors_BD.astype(jnp.float32)
    squares_B1 = (vectors_BD**2).sum(axis=-1, keepdims=True)
    empty_B1 = squares_B1 == 0
    return jnp.where(empty_B1, 0.0, vectors_BD * jax.lax.rsqrt(jnp.where(empty_B1, 1.0, squares_B1)))


def cosines(one_BD: jax.Array, two_BD: jax.Array) -> jax.Array:
    """The cosine of two vectors, float32 [B]."""
    return (unit(one_BD) * unit(two_BD)).sum(axis=-1)


def row_weights(batch: Batch, weights_B: jax.Array) -> jax.Array:
    """The weight of an example shared among its K options, [B x K], 0 for those that it has not."""
    present_BK = present_options(batch).astype(jnp.float32)
    share_B1 = weights_B[:, None] / jnp.maximum(present_BK.sum(axis=1, keepdims=True), 1.0)
    return (present_BK * share_B1).reshape(-1)


def language_weights(rows: Batch, weights_N: jax.Array) -> jax.Array:
    """Weights of the tokens, [N, T], with which their sum is each row's mean times its weight.

    GPT-1's auxiliary loss is a mean over the tokens of each sequence, and then over the batch (Radford et al. 2018,
    section 3.2; its code, `train.py`): a long text counts no more than a short one.
    """
    real_NT = rows[WEIGHTS].astype(jnp.float32)
    return real_NT * (weights_N / jnp.maximum(real_NT.sum(axis=1), 1.0))[:, None]


def with_language(loss: Weighted, metrics: Metrics, language: Weighted, share: float) -> tuple[Weighted, Metrics]:
    """L3 = L2 + share x L1 (Radford et al. 2018, equation 5): `language` is L1's sum over rows of L2's weights."""
    own = Weighted(language.sum, loss.weight)
    return Weighted(loss.sum + share * own.sum, loss.weight), metrics | {"language_loss": own}
