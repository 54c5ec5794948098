"""Fine-tuning: a task of the recipe's own on a model that is there already."""

from __future__ import annotations

from lmjax.errors import UserError
from lmjax.settings import Finetune
from lmjax.stages.changes import EARLIER, TRAINING, Kind, Table
from lmjax.stages.kind import fine_tuning
from lmjax.stages.shown import Drawn, Shown, Told
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Task

CHANGES: Table = {
    Kind.FREE: ("rows.prefetch", f"rows.{EARLIER}.", "model."),
    Kind.CONSEQUENTIAL: (
        *("task.", "rows.sequence_length", "rows.batch_size", "rows.shuffle", "rows.seed", "epochs", "dropout"),
    ),
    Kind.BREAKING: ("start",),
}


def task_of(resolved: ResolvedStage) -> Task:
    """The task of a stage. Raises UserError where only its name is known, as from recipe.json."""
    stage = resolved.of(Finetune)
    if not isinstance(stage.task, Task):
        raise UserError(
            f"{stage.name}.task: expected an object of a class that extends Task, found "
            f"{stage.task.plain()['task'] if stage.task else None!r}; run the recipe file that defines it"
        )
    return stage.task


KIND = fine_tuning(
    Finetune,
    task_of,
    shown=Shown(
        charts=(Drawn("loss", "Loss", (("loss", "training", False), ("validation_loss", "validation", True))),),
        tiles=(Told("validation_loss", "validation loss"), Told("loss", "training loss")),
        own_metrics=True,
    ),
    changes=(TRAINING, CHANGES),
)
