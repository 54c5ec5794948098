"""A sweep: named pretraining runs whose results are the rows of one table; and runs that train together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from lmjax.errors import FieldError, require
from lmjax.fields import PositiveFloat, Seed, Settings, check_name
from lmjax.settings.stages import Pretrain


@dataclass(frozen=True)
class Member(Settings):
    """One of several runs that train together: what it has of its own."""

    name: str = "run"
    seed: Seed = 0  # as train.seed
    learning_rate: PositiveFloat = 3e-4  # as optimizer.learning_rate

    def check(self) -> None:
        check_name(self.name)


@dataclass(frozen=True)
class PretrainTogether(Pretrain):
    """Pretraining of several models in one program, on the same batches, from seeds and at peak rates of their own.

    Small models leave a device idle between their small products; together they do not. Each run is what it would be
    alone, up to rounding. `train.seed` and `optimizer.learning_rate` are not used.
    """

    kind: ClassVar[str] = "pretrain_together"

    name: str = "together"
    members: tuple[Member, ...] = (Member(),)

    def check(self) -> None:
        super().check()
        names = [one.name for one in self.members]
        fits = len(set(names)) == len(names) > 0
        require(fits, "members", names, "at least one run, of different names", "set the name of each")
        require(not self.start, "start", self.start, "none for runs that train together", "train them one by one")
        prompts = self.evaluation.prompts
        require(not prompts, "evaluation.prompts", prompts, "none for runs that train together", "leave them out")
        best = self.checkpoint.keep_best
        require(best == 0, "checkpoint.keep_best", best, "0 for runs that train together", "leave it out")


@dataclass(frozen=True)
class SweepRun(Settings):
    """One run, by the name of its stage.

    With a `trunk`, an earlier run of the sweep at a constant rate, it is a cooldown: it continues the trunk's state
    from the step at which its own rate begins to fall, and ends as a run of its own from the beginning would.
    """

    stage: Pretrain = Pretrain()
    trunk: str = ""
    budget: PositiveFloat | None = None  # FLOPs that the run was designed for; its row has them
    reason: str = ""  # the arithmetic of its rate and batch, and the source of the rule

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def cooldown_step(self) -> int:
        """The last step before which the rate does not know where the run ends: there a cooldown leaves its trunk."""
        return math.floor(self.stage.optimizer.schedule.stable * self.stage.train.steps)


@dataclass(frozen=True)
class Sweep:
    """Runs of different names, in one workdir with one table (lmjax/runs/sweep.py)."""

    name: str
    runs: tuple[SweepRun, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        require(bool(self.runs), "runs", (), "at least one run", "add a SweepRun")
        names = [run.name for run in self.runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "runs", twice, "runs of different names", "set the name of each stage")
        before: dict[str, SweepRun] = {}
        for run in self.runs:
            if run.trunk:
                try:
                    _check_cooldown(run, before)
                except FieldError as error:
                    raise error.within(run.name) from None
            before[run.name] = run

    @property
    def stages(self) -> tuple[Pretrain, ...]:
        return tuple(run.stage for run in self.runs)


def _check_cooldown(run: SweepRun, before: dict[str, SweepRun]) -> None:
    """Raises FieldError where the run is not what its trunk becomes with an earlier end."""
    trunk = before.get(run.trunk)
    known = trunk is not None and not trunk.trunk
    require(known, "trunk", run.trunk, "an earlier run that has no trunk itself", "move the trunk before it")
    assert trunk is not None
    schedule = run.stage.optimizer.schedule
    falls = schedule.kind == "wsd" and schedule.decay is None and schedule.unit == "steps"
    fix = "use ScheduleSettings(kind='wsd')"
    require(falls, "optimizer.schedule", schedule, "'wsd' in steps, without decay, for a cooldown", fix)
    reached = 0 < run.cooldown_step <= trunk.cooldown_step and schedule.warmup <= run.cooldown_step
    expected = f"a cooldown between its warmup and step {trunk.cooldown_step}, where the trunk's own begins"
    require(reached, "train.steps", run.stage.train.steps, expected, "change it, or take a longer trunk")
    for field in dataclasses.fields(run.stage):
        own, other = getattr(run.stage, field.name), getattr(trunk.stage, field.name)
        if field.name == "train":
            other = dataclasses.replace(other, steps=own.steps)
        free = field.name in ("name", "reasons", "evaluation", "checkpoint", "log")
        require(free or own == other, field.name, own, f"what its trunk has, {other!r}", "copy the trunk's")
    saved = run.cooldown_step in trunk.stage.checkpoint.at
    fix = f"add it to the checkpoint.at of {trunk.name!r}"
    require(saved, "trunk", run.trunk, f"a trunk that keeps its checkpoint of step {run.cooldown_step}", fix)
