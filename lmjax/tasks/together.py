"""Runs of one shape that train together: one program over their seeds and peak rates, by `jax.vmap`, on one device.

In: a stage, whose seed and learning rate the runs' own stand in for. Out: `RunsTogether`, pure functions of states that
are stacked along a first axis R of runs, compiled once for all rates. On a CPU the steps of eight runs together are
faster than one by one at width 32, and slower from width 64 and 256 tokens on (experiments/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.evaluate.validation import Sums
from lmjax.optim.train_state import TrainState
from lmjax.settings import TrainingStage
from lmjax.tasks.program import RunNumbers
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Task
from lmjax.training.step import Metrics


@dataclass(frozen=True)
class RunsTogether:
    """Jitted functions of R runs: `seeds` is int32 [R], `rates` float32 [R], of states each leaf is stacked, [R, ...].

    `step` takes over the memory of `states`. Its metrics are those of `make_train_step`, each stacked. A run whose
    gradient is not finite skips its step, and the others do not.
    """

    fresh: Callable[[jax.Array], TrainState]  # (seeds) -> states before the first step
    # (states, seeds, rates, batch) -> (states, metrics)
    step: Callable[[TrainState, jax.Array, jax.Array, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Batch], Sums]  # (states.params, batch) -> sums of a validation batch, without dropout


def runs_together(task: Task, resolved: ResolvedStage, steps: int, *, own_batches: bool = False) -> RunsTogether:
    """The programs of runs that differ only in train.seed and optimizer.learning_rate, for `steps` steps in all.

    With `own_batches` the fields of a training batch are stacked, [R, B, ...], one batch for each run; else all runs
    see the same. A task with an `optimizer` of its own takes `peak` in it. Raises UserError for a stage with an initial
    checkpoint, and for a task that reads frozen models.

        runs = runs_together(NextToken(...), resolved, steps)
        states = runs.fresh(seeds)
        for at in range(steps):
            states, metrics = runs.step(states, seeds, rates, loader.batch_at(at))
    """
    stage = resolved.of(TrainingStage)
    require(not stage.start, "start", stage.start, "none for runs that train together", "train them one by one")
    model = task.model(resolved, jax.default_backend())
    alone = not task.frozen_models(model)
    require(alone, "task", type(task).__name__, "one without frozen models for runs that train together", "use another")
    step, numbers = task.step(model, resolved), task.numbers(resolved, steps)
    optimizer, _ = task.optimizer(resolved, model.logical_axes(), numbers.course)

    def fresh(seed: jax.Array) -> TrainState:
        return TrainState.create(model.init(jax.random.key(seed)), optimizer)

    def step_of_one(state: TrainState, seed: jax.Array, rate: jax.Array, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, RunNumbers(seed, numbers.course._replace(peak=rate)), batch)

    return RunsTogether(
        jax.jit(jax.vmap(fresh)),
        jax.jit(jax.vmap(step_of_one, in_axes=(0, 0, 0, 0 if own_batches else None)), donate_argnums=0),
        jax.jit(jax.vmap(task.read(model, resolved), in_axes=(0, None))),
    )
