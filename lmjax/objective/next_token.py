"""Language modelling: predict each next token."""

from __future__ import annotations

from typing import Any

import jax

from lmjax.data.batch import TARGETS, WEIGHTS, Batch
from lmjax.model.transformer import Transformer
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary


def language_loss(
    model: Transformer,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    valid_vocab: int | None = None,
) -> LossFunction:
    """A function (params, batch, rng) -> (loss, metrics), all as (sum, weight); `rng` None means no dropout.

    `valid_vocab` is the tokenizer's size where the model's table has more rows. The loss is the cross-entropy with its
    extra terms, plus the model's auxiliary losses. Raises UserError for a model that sees the tokens it predicts.
    """
    model.require_causal("predicting the next token")

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
        hidden_BTD, aux = model.hidden(params, batch, rng)
        loss, metrics = cross_entropy(
            hidden_BTD,
            model.head(params),
            batch[TARGETS],
            batch[WEIGHTS],
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            chunking=model.chunking,
            valid_vocab=valid_vocab,
        )
        return with_auxiliary(loss, metrics, aux, batch[WEIGHTS])

    return loss_fn
