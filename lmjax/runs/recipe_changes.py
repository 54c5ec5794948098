"""What may change in a recipe between two runs of one workdir, and what a change does to the batches that follow.

In: the recipe that the workdir's newest steps were trained with, and the one that is asked for. Out: the recipe to
train with, and the changes in words; or a UserError. lmjax/stages/changes.py says of which kind each field is.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError, require, shortened
from lmjax.settings import DataSettings, OptimizerSettings, ScheduleSettings, Stage, TrainingStage
from lmjax.settings.former_defaults import as_begun
from lmjax.settings.recipe_files import flat, plain
from lmjax.stages.changes import EARLIER, Kind
from lmjax.stages.registry import kind_of

FILLED = tuple(f"dialogue.template.{name}" for name in ("jinja", "tokens", "ends"))  # in where a template has a name


class Change(NamedTuple):
    """One field that differs, and the words that tell it."""

    field: str
    kind: Kind
    told: str


def kinds_of(stage: Stage, field: str) -> list[Kind]:
    """The kinds that the tables give a field of a stage: one, unless a table is wrong."""
    return [
        kind
        for table in kind_of(stage).changes
        for kind, entries in table.items()
        for entry in entries
        if field == entry or (entry.endswith(".") and f"{field}.".startswith(entry))
    ]


def changes_of(old: Stage, new: Stage, step: int) -> list[Change]:
    """What differs, with the kind that it has `step` steps after the beginning."""
    before, after = flat(plain(old)), flat(plain(new))
    found = []
    for field in [*before, *(name for name in after if name not in before)]:
        a, b = before.get(field, "(absent)"), after.get(field, "(absent)")
        if a != b and not _filled_in(new, field):
            kind = _kind(old, new, field, step)
            found.append(Change(field, kind, f"{field}: {shortened(a)} -> {shortened(b)}"))
    return found


def adopted(old: Stage, new: Stage, step: int, force: bool, where: object) -> tuple[Stage, list[str]]:
    """The recipe to train with after `step` steps of `old`, which read on where those ended; and what has changed.

    Fields that `new` leaves open and whose defaults have changed since `old` began stay as they were. Raises UserError
    for a change that breaks the run, and for one that changes the rest of it unless `force`.
    """
    if type(old) is not type(new):
        raise UserError(f"{where}: holds a {type(old).__name__}, not a {type(new).__name__}; choose another --workdir")
    new = as_begun(old, new)
    changes, trains = changes_of(old, new, step), isinstance(new, TrainingStage)
    breaking = [change.told for change in changes if change.kind is Kind.BREAKING]
    if breaking:
        fields = "\n  ".join(breaking)
        raise UserError(
            f"{where}: its recipe differs from this one in\n  {fields}\n"
            f"which its {f'weights of step {step}' if trains else 'answers'} cannot change to, "
            "also not by --force; choose another --workdir"
        )
    consequential = [change.told for change in changes if change.kind is Kind.CONSEQUENTIAL]
    if consequential and not force:
        fields = "\n  ".join(consequential)
        raise UserError(
            f"{where}: its recipe differs from this one in\n  {fields}\n"
            "which changes the rest of the run; choose another --workdir, or resume with the new recipe by --force"
        )
    if new.steps is not None:
        fix = f"raise it, or choose another --workdir than {where}"
        require(step <= new.steps, "train.steps", new.steps, f"{step}, the step reached, or more", fix)
    return _read_on(old, new, step), [change.told for change in changes]


def _kind(old: Stage, new: Stage, field: str, step: int) -> Kind:
    (kind,) = kinds_of(new, field) or [Kind.BREAKING]
    if field == "train.steps" and not _end_matters(old, new, step):
        return Kind.FREE
    if field == "epochs" and not any(_knows_end(schedule) for schedule in _schedules(new)):
        return Kind.FREE
    if field == "model.context" and new.model is not None and new.model.positions.kind != "learned":
        return Kind.CONSEQUENTIAL
    return kind


def _filled_in(stage: Stage, field: str) -> bool:
    """Whether a run fills the field in: its differences are not the user's."""
    task, parts = getattr(stage, "task", None), field.split(".")
    if task is not None and parts[:2] == ["task", "fields"] and parts[2] in task.filled:
        return not getattr(task, parts[2])
    template = stage.template
    if template is not None and template.name and not template.jinja and field.startswith(FILLED):
        return True
    return EARLIER in field.split(".") or (not stage.own_model and field.split(".")[0] == "model")


def _schedules(stage: Any) -> list[ScheduleSettings]:
    values = [getattr(stage, field.name) for field in dataclasses.fields(stage)]
    return [value.schedule for value in values if isinstance(value, OptimizerSettings)]


def _knows_end(schedule: ScheduleSettings) -> bool:
    return schedule.decay is None and schedule.kind in ("cosine", "linear", "wsd")


def _end_matters(old: Any, new: Any, step: int) -> bool:
    """Whether another number of steps changes a learning rate up to `step`, or the shape of what follows."""
    if getattr(new, "epochs", None) is not None:
        return False
    shorter = new if new.train.steps < old.train.steps else old
    for schedule in _schedules(new):
        if _knows_end(schedule):
            now, end = step, shorter.train.steps
            if schedule.unit == "tokens":
                ramp = BatchRamp(shorter.loading)
                now, end = ramp.tokens_at(now), ramp.tokens_at(end)
            if schedule.kind != "wsd" or now > schedule.stable * end:
                return True
    return False


def _read_on(old: Stage, new: Stage, step: int) -> Stage:
    """`new`, whose batches follow the rows of the first `step` steps of `old`."""
    then, now = _sizes(old.loading, step), _sizes(new.loading, step)
    earlier = old.loading.earlier_batches
    if then != now:
        earlier = ()
        for until, *sizes in (*old.loading.earlier_batches, then):
            if (earlier[-1][0] if earlier else 0) < step:
                earlier = (*earlier, (min(until, step), *sizes))  # type: ignore[assignment]
    return new.with_earlier_batches(earlier)


def _sizes(data: DataSettings, until: int) -> tuple[int, int, int, int, int, int]:
    """The entry of `earlier_batches` for batches that end before step `until`."""
    ramp = data.ramp_from or 0
    return until, data.batch_size, data.sequence_length, ramp, data.ramp_tokens, data.ramp_sizes
