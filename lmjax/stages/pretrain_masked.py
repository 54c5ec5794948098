"""Pretraining of an encoder: hidden tokens, and whether two texts follow each other."""

from __future__ import annotations

from jax.sharding import Mesh

from lmjax.notation import percent
from lmjax.settings import PretrainMasked
from lmjax.stages.changes import TRAINING, Kind
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.pretrain import CHANGES, pretrain
from lmjax.stages.shown import Shown, Told, two_curves
from lmjax.tasks.masked_language import MaskedLanguage, MaskedPairs
from lmjax.tasks.program import Program
from lmjax.tasks.resolved import ResolvedStage


def task_of(resolved: ResolvedStage) -> MaskedLanguage:
    """The task of a stage: with or without pairs."""
    return MaskedPairs() if resolved.of(PretrainMasked).pairs else MaskedLanguage()


def _step(resolved: ResolvedStage, mesh: Mesh) -> Program:
    return task_of(resolved).build(resolved, mesh, resolved.of(PretrainMasked).train.steps)


KIND = StageKind(
    settings=PretrainMasked,
    shown=Shown(
        charts=(
            two_curves("loss", "Loss, nats"),
            two_curves("masked_loss", "Hidden tokens, nats per token"),
            two_curves("masked_accuracy", "Hidden tokens that are found"),
            two_curves("next_sentence_accuracy", "Pairs that are judged right"),
        ),
        tiles=(
            Told("validation_masked_loss", "validation loss", unit="nats per hidden token"),
            Told("validation_masked_accuracy", "accuracy", percent, "of hidden tokens"),
            Told("validation_next_sentence_accuracy", "accuracy", percent, "of pairs"),
            Told("loss", "training loss", unit="nats"),
        ),
        left_out=lambda recipe: set() if recipe.pairs else {"next_sentence_accuracy"},
    ),
    changes=(
        TRAINING,
        CHANGES,
        {Kind.CONSEQUENTIAL: ("masking.", "next_sentence."), Kind.BREAKING: ("pairs",)},
    ),
    train=lambda resolved, session: pretrain(resolved, session, task_of(resolved)),
    programs={"train": Planned(_step, lambda resolved: task_of(resolved).cost(resolved))},
    prepares_text=True,
)
