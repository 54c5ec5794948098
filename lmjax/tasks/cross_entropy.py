"""What tasks share whose loss is the cross-entropy of tokens: its terms, and what an evaluation says of it."""

from __future__ import annotations

from typing import Any

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.evaluate.validation import Sums, mean_of
from lmjax.settings import TrainingStage
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values


def terms_of(resolved: ResolvedStage) -> dict[str, Any]:
    """z_loss, label_smoothing and valid_vocab of `lmjax.objective.cross_entropy`, as the recipe says."""
    train = resolved.of(TrainingStage).train
    return {"z_loss": train.z_loss, "label_smoothing": train.label_smoothing, "valid_vocab": resolved.entries}


def loss_and_accuracy(sums: Sums) -> Values:
    """The loss per token that is learned, and the share of them that is right where those before are given."""
    return {VALIDATION_LOSS: mean_of(sums["cross_entropy"]), "validation_accuracy": mean_of(sums["accuracy"])}
