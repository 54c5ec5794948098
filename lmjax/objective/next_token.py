"""Language modelling: predict each next token."""

from __future__ import annotations

from typing import Any

import jax

from lmjax.data.batch import TARGETS, WEIGHTS, Batch
from lmjax.model.language_model import LanguageModel
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.weighted import LossFunction, Weighted


def language_loss(
    model: LanguageModel,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    valid_vocab: int | None = None,
) -> LossFunction:
    """A function (params, batch, rng) -> (loss, metrics), all as (sum, weight); `rng` None means no dropout.

    `valid_vocab` is the tokenizer's size where the model's table has more rows.
    """

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, dict[str, Weighted]]:
        return cross_entropy(
            model.hidden(params, batch, rng),
            model.head(params),
            batch[TARGETS],
            batch[WEIGHTS],
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            chunking=model.chunking,
            valid_vocab=valid_vocab,
        )

    return loss_fn
