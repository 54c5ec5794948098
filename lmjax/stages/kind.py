"""What a kind of stage is: its settings, and the functions that run, build and describe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from jax.sharding import Mesh

from lmjax.settings import Stage, TrainingStage
from lmjax.stages.changes import Table
from lmjax.stages.shown import Shown
from lmjax.stages.train_stage import Outcome, train_task
from lmjax.tasks.program import Cost, Program
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, Task


class Trained(TypedDict):
    """The summary of a training stage; more numbers stand beside it."""

    steps: int


@dataclass(frozen=True)
class Planned:
    """One program of a stage that a plan can compile: how it is built, and what it has to do."""

    build: Callable[[ResolvedStage, Mesh], Program]
    cost: Callable[[ResolvedStage], Cost]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage. `train` trains; a kind that only writes files has `produce` instead, which gives its summary.

    Both raise UserError for bad input, and are called again to resume what was interrupted.
    """

    settings: type[Stage]
    shown: Shown  # in reports
    changes: Sequence[Table]  # which fields of its recipe may change between two runs
    train: Callable[[ResolvedStage, Session], Outcome] | None = None
    produce: Callable[[ResolvedStage, Session], dict[str, Any]] | None = None
    programs: dict[str, Planned] = field(default_factory=dict)  # "train" is the step; none: there is nothing to compile
    loads_executable: bool = False  # whether a run can load its step from a file
    chooses_layout: bool = False  # whether what its recipe leaves open of mesh and compute is chosen for a TPU slice
    one_model: bool = True  # whether a checkpoint holds one model
    prepares_text: bool = False  # whether it makes a tokenizer and token shards from raw text
    summary_form: Any = Trained  # what its summary holds at least
    describe_finished: Callable[[Path, Stage], list[str]] = lambda folder, stage: []  # lines of a pipeline's end


def fine_tuning(
    settings: type[Stage], task_of: Callable[[ResolvedStage], Task], shown: Shown, changes: Sequence[Table]
) -> StageKind:
    """A kind that trains a task on a model that is there already; `task_of` gives the task of a stage."""

    def build(resolved: ResolvedStage, mesh: Mesh) -> Program:
        stage = resolved.of(TrainingStage)
        return task_of(resolved).build(resolved, mesh, stage.train.steps)

    return StageKind(
        settings=settings,
        shown=shown,
        changes=changes,
        train=lambda resolved, session: train_task(task_of(resolved), resolved.opened(), session),
        programs={"train": Planned(build, lambda resolved: task_of(resolved).cost(resolved))},
    )
