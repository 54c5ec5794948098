"""What a sweep takes of a TPU slice that is not attached, for `lmjax sweep --plan`: steps x the planner's seconds.

In: a slice's name and the runs of a sweep. Out: the seconds of each run's own steps on the whole slice. A shape and
batch is compiled once, by the TPU's own compiler (lmjax/plan/), and what it says is kept on disk. Evaluation,
checkpoints, compilation and the start of a run are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.plan.cache import Cache, Result, key
from lmjax.plan.compile import slice_devices
from lmjax.plan.planner import planned_recipe
from lmjax.plan.search import compiled
from lmjax.plan.slices import Slice, find_slice
from lmjax.settings import Pretrain, SweepRun


@dataclass(frozen=True)
class SliceTime:
    """Seconds of a run's own steps on a slice; None, and why, where a step does not fit or cannot be laid out."""

    seconds: float | None
    refusal: str = ""


class SlicePlanner:
    """Tells how long runs take on a slice; `say` receives each program that is compiled.

    Raises UserError for an unknown slice and a missing libtpu.
    """

    def __init__(self, topology: str, cache: Cache, say: Callable[[str], None]) -> None:
        self.where: Slice = find_slice(topology)
        self.hosts = len({device.process_index for device in slice_devices(self.where)})
        self._cache, self._say = cache, say
        self._results: dict[str, Result] = {}

    def on(self, part: Slice) -> SlicePlanner:
        """The same for another slice."""
        return SlicePlanner(part.name, self._cache, self._say)

    def time_of(self, one: SweepRun) -> SliceTime:
        """Steps x the seconds of a step, summed over the batch sizes of its ramp; a cooldown leaves out its trunk's."""
        try:
            stage = planned_recipe(one.stage, self.where.name)
        except UserError as error:  # no mesh divides its batch
            return SliceTime(None, str(error))
        seconds = 0.0
        for rows, steps in own_steps(one).items():
            result = self._result(stage, rows)
            found = result.estimate
            if found is None:
                return SliceTime(None, result.refusal)
            if found.step_seconds is None:
                needs = f"needs {found.peak_hbm_gib:.2f} of {found.hbm_gib:.2f} GiB HBM a device"
                return SliceTime(None, f"out of memory: {needs}")
            seconds += steps * found.step_seconds
        return SliceTime(seconds)

    def _result(self, stage: Pretrain, rows: int) -> Result:
        data = dataclasses.replace(stage.data, batch_size=rows, ramp_from=None, ramp_tokens=0)
        recipe = dataclasses.replace(stage, data=data)
        name = key(recipe, self.where.name)
        if name not in self._results:
            self._results[name] = self._cache.get(recipe, self.where.name) or self._compiled(recipe)
        return self._results[name]

    def _compiled(self, recipe: Pretrain) -> Result:
        rows, chips = recipe.data.batch_size, self.where.chips
        self._say(f"compiling {recipe.name}, {rows} rows, for {chips} chips, {self.where.name}")
        return compiled(recipe, self.where, self._cache)


def own_steps(one: SweepRun) -> dict[int, int]:
    """Rows of a batch -> how many of the run's own steps have so many: a ramp has several, a cooldown no trunk's."""
    first = one.cooldown_step if one.trunk else 0
    last, table = one.stage.train.steps, BatchRamp(one.stage.data).table
    found: dict[int, int] = {}
    ends = (*table.first_steps[1:], last)
    for begin, end, rows in zip(table.first_steps, ends, table.batch_sizes, strict=True):
        steps = min(end, last) - max(begin, first)
        if steps > 0:
            found[rows] = found.get(rows, 0) + steps
    return found
