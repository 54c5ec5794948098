"""Hands a stage's own parts to the one loop, with checkpoints, the record and the progress display around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.parallel import multihost
from lmjax.recipe import Pretrain, to_json
from lmjax.rlhf_recipes import DPO, PPO, SFT, RewardModel
from lmjax.settings import ModelSettings
from lmjax.training.checkpoint import Checkpointer
from lmjax.training.loop import Job, Metrics, Values, fit
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import METRICS_FILE, Recorder
from lmjax.training.state import TrainState
from lmjax.training.stop import StopRequest
from lmjax.training.throughput import Meter

TrainingRecipe = Pretrain | SFT | RewardModel | DPO | PPO


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves for its summary."""

    state: TrainState
    steps: int  # of the whole stage
    settings: ModelSettings
    sequence_length: int


@dataclass(frozen=True)
class Training:
    """A stage's own parts."""

    recipe: TrainingRecipe  # with its model filled in
    stage: str  # what its checkpoints' folder is called
    steps: int
    mesh: Mesh
    abstract: TrainState
    fresh: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batch_at: Callable[[int], Batch]
    tokens_in: Callable[[int], int]  # tokens of the batch of a step
    prefetch: int
    flops_per_token: float
    evaluate: Callable[[TrainState, int, Recorder], Values]
    finish: Callable[[TrainState], TrainState] = lambda state: state  # of the state that the last step saves
    read_so_far: Callable[[int], Values] = lambda done: {}  # recorded beside a step's metrics


def train(
    training: Training, workdir: Path, tokenizer_folder: Path, stop: StopRequest, display: ProgressDisplay
) -> TrainState:
    """Runs the loop from this workdir's newest checkpoint, or else from a fresh state, and saves what it returns.

    Raises UserError where the workdir is further than the stage's last step.
    """
    recipe = training.recipe
    with stop.deferred(), ExitStack() as stack:
        checkpointer = stack.enter_context(
            Checkpointer(
                workdir / "checkpoints" / training.stage,
                recipe.checkpoint,
                recipe_json=to_json(recipe),
                tokenizer_folder=tokenizer_folder,
                report=display.say,
            )
        )
        # The order: this workdir's newest checkpoint, or else what the stage starts from.
        state = checkpointer.restore(training.abstract) or training.fresh()
        first = int(jax.device_get(state.step))
        fix = f"raise it, or choose another --workdir than {workdir}"
        require(first <= training.steps, "train.steps", training.steps, f"{first}, the step reached", fix)
        silent = not multihost.is_first()
        recorder = Recorder(workdir, tensorboard=recipe.log.tensorboard, resumed_at=first, silent=silent)
        stack.callback(recorder.close)
        if first >= recipe.log.every and not recorder.kept:
            display.say(f"{workdir / METRICS_FILE}: no line up to step {first} is left; the record begins here")
        display.start(recipe.name, training.steps, first)
        stack.callback(display.finish)
        job = _job(training, checkpointer, recorder, workdir, display)
        if stop.signal is None and _owes_evaluation(recipe, recorder, first):
            job.evaluate(state, first)
        return fit(job, state, stop)


def _job(
    training: Training, checkpointer: Checkpointer, recorder: Recorder, workdir: Path, display: ProgressDisplay
) -> Job:
    recipe = training.recipe

    def evaluate(state: TrainState, done: int) -> Values:
        values = training.evaluate(state, done, recorder)
        if values:
            recorder.write(done, values)
            numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
            display.say(f"step {done}: {numbers}")
        return values

    def save(state: TrainState, done: int, values: Values) -> None:
        checkpointer.save(training.finish(state) if done == training.steps else state, done, values)

    return Job(
        steps=training.steps,
        step=training.step,
        batch_at=training.batch_at,
        tokens_in=training.tokens_in,
        evaluate=evaluate,
        save=save,
        record=lambda done, values: recorder.write(done, values | training.read_so_far(done)),
        show=display.update,
        meter=Meter(training.flops_per_token, jax.devices()[0].device_kind, training.mesh.devices.size),
        evaluation=recipe.evaluation,
        checkpoint=recipe.checkpoint,
        log=recipe.log,
        prefetch=training.prefetch,
        abort_after_skipped=recipe.train.abort_after_skipped,
        profile_folder=workdir / "profile",
    )


def _owes_evaluation(recipe: TrainingRecipe, recorder: Recorder, first: int) -> bool:
    """Whether the run was stopped, which does not wait for an evaluation, after a step that has one.

    A policy has one before its first iteration, too: of what it starts from.
    """
    due = first % recipe.evaluation.every == 0 and (first > 0 or isinstance(recipe, PPO))
    evaluated = any(name.startswith("validation_") for line in recorder.kept if line["step"] == first for name in line)
    return due and not evaluated
