"""Hands a stage's own parts to the one loop, with checkpoints, the record and the progress display around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lmjax.bucket import checkpoints_of
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.optim.train_state import TrainState
from lmjax.parallel import processes as multihost
from lmjax.runs.remote_workdir import mirror
from lmjax.settings import ModelSettings
from lmjax.settings.recipe_files import Pretrain, to_json
from lmjax.settings.stages import DPO, PPO, SFT, RewardModel
from lmjax.training.loop import Job, Metrics, Values, evaluation_due, fit
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import METRICS_FILE, Recorder
from lmjax.training.stop import Interrupted, StopRequest
from lmjax.training.throughput import Meter

TrainingRecipe = Pretrain | SFT | RewardModel | DPO | PPO


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves for its summary."""

    state: TrainState
    steps: int  # of the whole stage
    settings: ModelSettings
    sequence_length: int


class EvaluationLines:
    """What an evaluation adds to the record beside its numbers: samples and tables."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.written.append(values)


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
    evaluate: Callable[[TrainState, int, EvaluationLines], Values]  # Interrupted where a stop is asked for
    finish: Callable[[TrainState], TrainState] | None = None  # of the state that the last step saves; done twice, it
    # changes nothing more. Interrupted where a stop is asked for
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
                checkpoints_of(workdir) / training.stage,
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
        if stop.signal is None and owes_evaluation(recipe, recorder.kept, first, training.steps):
            try:
                if first == training.steps and training.finish is not None:
                    state = training.finish(state)
                    checkpointer.replace(state, first)
                values = job.evaluate(state, first)
            except Interrupted:  # the state is saved, or fresh
                stop.left_off = True
                return state
            if first:
                job.evaluated(first, values)
        return fit(job, state, stop)


def _job(
    training: Training, checkpointer: Checkpointer, recorder: Recorder, workdir: Path, display: ProgressDisplay
) -> Job:
    recipe = training.recipe

    def evaluate(state: TrainState, done: int) -> Values:
        lines = EvaluationLines()
        values = training.evaluate(state, done, lines)
        for line in lines.written:  # once the evaluation is whole: an interrupted one is done again
            recorder.write(done, line)
        if values:
            recorder.write(done, values)
            display.say(f"step {done}: {', '.join(_described(*item) for item in values.items())}")
        return values

    def save(state: TrainState, done: int) -> None:
        if done == training.steps and training.finish is not None:
            with suppress(Interrupted):  # `train` finishes what is saved here unfinished
                state = training.finish(state)
        mirror(workdir)  # first, so that a checkpoint has its record beside it
        checkpointer.save(state, done, {})

    return Job(
        steps=training.steps,
        step=training.step,
        batch_at=training.batch_at,
        tokens_in=training.tokens_in,
        evaluate=evaluate,
        save=save,
        evaluated=checkpointer.evaluated,
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


def owes_evaluation(recipe: TrainingRecipe, lines: Sequence[dict[str, Any]], done: int, steps: int) -> bool:
    """Whether the state after so many of a run's `steps`, whose record is `lines`, is still to be evaluated.

    A run that was stopped does not wait for an evaluation. A policy has one before its first iteration, too: of what it
    starts from.
    """
    due = evaluation_due(recipe.evaluation, recipe.checkpoint, done, steps) and (done > 0 or isinstance(recipe, PPO))
    names = {name for line in lines if line["step"] == done for name in line}
    return due and not any(name.startswith("validation_") or name == "sample" for name in names)


def _described(name: str, value: float) -> str:
    """A number of an evaluation in words; behind a "/" is the source that it is of."""
    quantity, of, source = name.partition("/")
    return f"{quantity.replace('_', ' ')}{' of ' if of else ''}{source} {value:.4g}"
