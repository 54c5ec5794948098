"""The loss of extractive question answering: from two scores of each column to a (sum, weight) pair of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.objective.weighted import Metrics, Weighted


def masked_scores(scores_BT2: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """The scores in float32, -inf at padding: neither a loss nor a prediction depends on the length of the rows."""
    return jnp.where((segments_BT != 0)[..., None], scores_BT2.astype(jnp.float32), -jnp.inf)


def span_loss(
    scores_BT2: jax.Array, segments_BT: jax.Array, spans_B2: jax.Array, weights_B: jax.Array
) -> tuple[Weighted, Metrics]:
    """The mean of the cross-entropies of the first and of the last column (Devlin et al. 2018, section 4.2), in nats.

    Args:
      scores_BT2: of each column, that it is the first and that it is the last one of the answer. The softmax is over
        the columns of a row that are no padding.
      segments_BT: 0 at padding.
      spans_B2: the columns of the answer; those of [CLS], 0 and 0, where the row has none.
      weights_B: of the rows; 0 for rows that fill a batch up.

    Returns the loss and as a metric `spans`, the share of rows of which both columns have the highest score.
    """
    scores_BT2 = masked_scores(scores_BT2, segments_BT)
    weights_B = weights_B.astype(jnp.float32)
    has_B = (segments_BT != 0).any(axis=1)  # a row of padding has no softmax
    scores_BT2 = jnp.where(has_B[:, None, None], scores_BT2, 0.0)
    nats_BT2 = -jax.nn.log_softmax(scores_BT2, axis=1)
    nats_B = jnp.take_along_axis(nats_BT2, spans_B2[:, None, :], axis=1)[:, 0].mean(axis=1)
    right_B = (scores_BT2.argmax(axis=1) == spans_B2).all(axis=1)
    weight = weights_B.sum()
    nats_B = jnp.where(weights_B > 0, nats_B, 0.0)
    return Weighted((nats_B * weights_B).sum(), weight), {"spans": Weighted((right_B * weights_B).sum(), weight)}
