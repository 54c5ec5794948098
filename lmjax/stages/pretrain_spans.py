"""Pretraining of an encoder-decoder: the spans that are missing in a text."""

from __future__ import annotations

from jax.sharding import Mesh

from lmjax.notation import percent
from lmjax.settings import PretrainSpans
from lmjax.stages.changes import TRAINING, Kind
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.pretrain import CHANGES, pretrain
from lmjax.stages.shown import LOSS, Shown, Told, two_curves
from lmjax.tasks.program import Program
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.span_corruption import SpanCorruption


def _step(resolved: ResolvedStage, mesh: Mesh) -> Program:
    return SpanCorruption().build(resolved, mesh, resolved.of(PretrainSpans).train.steps)


KIND = StageKind(
    settings=PretrainSpans,
    shown=Shown(
        charts=(
            LOSS,
            two_curves("accuracy", "Tokens of the targets that are right"),
        ),
        tiles=(
            Told("validation_loss", "validation loss", unit="nats per token"),
            Told("validation_accuracy", "accuracy", percent, "of the targets' tokens"),
            Told("loss", "training loss", unit="nats per token"),
        ),
    ),
    changes=(TRAINING, CHANGES, {Kind.CONSEQUENTIAL: ("spans.",)}),
    train=lambda resolved, session: pretrain(resolved, session, SpanCorruption()),
    programs={"train": Planned(_step, lambda resolved: SpanCorruption().cost(resolved))},
    prepares_text=True,
)
