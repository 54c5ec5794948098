"""Fine-tuning: a task, of lmjax's own or of the recipe's, on a model that is there already."""

from __future__ import annotations

import dataclasses
from typing import cast

from jax.sharding import Mesh

from lmjax.checkpoints.checkpoint import checkpoints_in
from lmjax.checkpoints.initial import recipe_of
from lmjax.errors import require
from lmjax.settings import Finetune
from lmjax.stages.changes import EARLIER, TRAINING, Kind, Table
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.shown import Shown, Told, labelled_text, rows_seen, two_curves
from lmjax.stages.train_stage import Outcome, train_task
from lmjax.tasks.program import Cost, Program
from lmjax.tasks.registry import known_task, task_named
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, Task

CHANGES: Table = {
    Kind.FREE: ("rows.prefetch", f"rows.{EARLIER}.", "model."),
    Kind.CONSEQUENTIAL: (
        *("task.", "rows.sequence_length", "rows.buckets", "rows.batch_size", "rows.shuffle", "rows.seed"),
        *("epochs", "dropout", "layer_decay", "frozen_layers"),
    ),
    Kind.BREAKING: ("start",),
}


def task_of(resolved: ResolvedStage) -> Task:
    """The task of a stage, its labels filled in. Raises UserError where only its name is known."""
    stage = resolved.of(Finetune)
    task = task_named(stage.task, f"{stage.name}.task")
    return task.prepared()


def adapted(resolved: ResolvedStage, task: Task) -> ResolvedStage:
    """The stage with the task as it is trained, and with its model: checkpoints keep both."""
    stage, model = resolved.of(Finetune), resolved.model
    before = None if resolved.start is None else getattr(resolved.start.recipe, "task", None)
    known = known_task(before, f"{stage.start}: recipe")
    if known is not None and model.vocab_size is not None:  # its rows are the task's again, as it left them
        there = min(known.added_rows(model), task.added_rows(model))
        model = dataclasses.replace(model, vocab_size=model.vocab_size - there)
    model = task.adapted(model, stage.rows.sequence_length)
    return dataclasses.replace(resolved, settings=dataclasses.replace(stage, task=task, model=model))


def _train(resolved: ResolvedStage, session: Session) -> Outcome:
    resolved = resolved.opened()
    task = task_of(resolved)
    _check_filled(task, resolved)
    return train_task(task, adapted(resolved, task), session)


def _check_filled(task: Task, resolved: ResolvedStage) -> None:
    """Raises UserError where the data tell of the task what this workdir's checkpoints were not trained with."""
    for checkpoint in checkpoints_in(resolved.folder)[:1]:
        trained = cast(Finetune, recipe_of(checkpoint)).task
        kept = {} if trained is None else trained.plain()["fields"]
        now = task.plain()["fields"]
        for name in task.filled:
            fix = f"restore the training data, give task.{name} in the recipe, or choose another --workdir"
            same = kept.get(name) == now[name]
            require(same, f"task.{name}", now[name], f"{kept.get(name)}, as of {checkpoint.path}", fix)


def _step(resolved: ResolvedStage, mesh: Mesh) -> Program:
    task = task_of(resolved)
    return task.build(adapted(resolved, task), mesh, resolved.of(Finetune).train.steps)


def _cost(resolved: ResolvedStage) -> Cost:
    task = task_of(resolved)
    return task.cost(adapted(resolved, task))


KIND = StageKind(
    settings=Finetune,
    shown=Shown(
        charts=(two_curves("loss", "Loss"),),
        tiles=(Told("validation_loss", "validation loss"), Told("loss", "training loss")),
        batch=labelled_text,
        seen=rows_seen,
        own_metrics=True,
    ),
    changes=(TRAINING, CHANGES),
    train=_train,
    programs={"train": Planned(_step, _cost)},
)
