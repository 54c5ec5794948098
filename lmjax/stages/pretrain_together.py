"""Pretraining of several models in one program, which differ in their seed and peak rate."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from lmjax.settings import PretrainTogether
from lmjax.stages.changes import TRAINING, Kind
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.pretrain import CHANGES, pretrain
from lmjax.stages.shown import Shown
from lmjax.tasks.next_token_together import NextTokenTogether
from lmjax.tasks.program import Cost, Program
from lmjax.tasks.resolved import ResolvedStage


def _task(resolved: ResolvedStage) -> NextTokenTogether:
    return NextTokenTogether(members=resolved.of(PretrainTogether).members)


def _step(resolved: ResolvedStage, mesh: Mesh) -> Program:
    return _task(resolved).build(resolved, mesh, resolved.of(PretrainTogether).train.steps)


def _cost(resolved: ResolvedStage) -> Cost:
    task = _task(resolved)
    one, runs = task.cost(resolved), task.copies
    return dataclasses.replace(one, tokens=one.tokens * runs, products=one.products * runs, scores=one.scores * runs)


KIND = StageKind(
    settings=PretrainTogether,
    shown=Shown(),
    changes=(TRAINING, CHANGES, {Kind.BREAKING: ("members.",)}),
    train=lambda resolved, session: pretrain(resolved, session, _task(resolved)),
    programs={"train": Planned(_step, _cost)},
    one_model=False,
    prepares_text=True,
)
