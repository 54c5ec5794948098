"""The one loop: batches into the step, metrics out, and between steps evaluation, checkpoints and a request to stop.

Every stage hands its parts over as a `Job`. The metrics of a step are fetched after the next one was dispatched, so
that the device never waits for the host. A state is saved before it is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from lmjax.data.batch import Batch
from lmjax.data.prefetch import prefetch
from lmjax.errors import UserError
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.settings import CheckpointSettings, EvaluationSettings, LogSettings
from lmjax.training.stop import Interrupted, StopRequest
from lmjax.training.throughput import Meter

Metrics = dict[str, Any]
Values = dict[str, float]


class UnfinishedStepError(UserError):
    """A mistake of the user's that a step met when it had a whole state, of before or after it: that can be saved."""

    def __init__(self, message: str, state: TrainState) -> None:
        super().__init__(message)
        self.state = state


class DivergedError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class Job:
    """What the loop runs. The functions that may be slow (`evaluate`, `save`) are called between steps."""

    steps: int
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batch_at: Callable[[int], Batch]  # on the devices
    tokens_in: Callable[[int], int]  # tokens of the batch of a step
    evaluate: Callable[[TrainState, int], Values]  # raises Interrupted where it leaves off because a stop is asked for
    save: Callable[[TrainState, int], None]
    evaluated: Callable[[int, Values], None]  # receives the step that was saved and then evaluated
    record: Callable[[int, Values], None]  # a line of the log
    show: Callable[[int, Values], None]  # the progress display
    meter: Meter
    evaluation: EvaluationSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    prefetch: int = 2
    abort_after_skipped: int = 10
    profile_folder: Path | None = None
    enough: Callable[[], bool] = lambda: False  # after an evaluation, whether the run ends there


@dataclass
class Window:
    """Sums of the metrics since the last line of the log, without the steps that were skipped, which are counted."""

    sums: dict[str, Weighted] = field(default_factory=dict)
    latest: Values = field(default_factory=dict)
    skipped: int = 0
    skipped_in_a_row: int = 0

    def add(self, metrics: Metrics) -> None:
        """Adds one step's metrics, which are on the host: pairs are summed, scalars replace the last ones."""
        skipped = bool(metrics.get("skipped"))
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        for name, value in metrics.items():
            if not isinstance(value, Weighted):
                self.latest[name] = float(value)
            elif not skipped:
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def flush(self) -> Values:
        """The means since the last flush, the latest scalars, and how many steps were `skipped`."""
        means = {name: float(pair.sum) / float(pair.weight) for name, pair in self.sums.items() if pair.weight}
        skipped = {"skipped": float(self.skipped)} if "skipped" in self.latest else {}
        self.sums, self.skipped = {}, 0
        return means | self.latest | skipped


def fit(job: Job, state: TrainState, stop: StopRequest) -> TrainState:
    """Runs the steps from `state.step` to `job.steps`, or until `stop` asks; what it returns has been saved.

    Raises DivergedError when `job.abort_after_skipped` steps in a row had a loss or gradient that is not finite, and
    what a step raises; where that is an UnfinishedStepError, its state is saved first.
    """
    if stop.signal is not None:
        return state
    window = Window()
    waiting: tuple[int, Metrics] | None = None
    first = int(jax.device_get(state.step))
    with _profiler(job) as profile, closing(prefetch(job.batch_at, first, job.steps, job.prefetch)) as batches:
        for step, batch, waited in batches:
            profile(step, state)
            try:
                with jax.transfer_guard("disallow"):
                    state, metrics = job.step(state, batch)
            except UnfinishedStepError as error:
                if waiting:
                    _settle(job, window, *waiting)
                _save_unsaved(job, error.state, first, step)
                raise
            stop.to_save = True
            if waiting:
                _settle(job, window, *waiting)
            waiting = (step, metrics)
            job.meter.step(job.tokens_in(step), waited)
            done = step + 1
            saves = save_due(job.checkpoint, done, job.steps)
            evaluates = evaluation_due(job.evaluation, job.checkpoint, done, job.steps)
            asked = stop.asked()
            if saves or evaluates or asked:
                _settle(job, window, *waiting)
                waiting = None
                with job.meter.paused():
                    asked = _between(job, state, done, stop, asked)
            if asked:
                break
    return state


def save_due(checkpoint: CheckpointSettings, done: int, steps: int) -> bool:
    """Whether a checkpoint is written after so many of a run's steps."""
    return done == steps or done % checkpoint.every == 0 or done in checkpoint.at


def evaluation_due(evaluation: EvaluationSettings, checkpoint: CheckpointSettings, done: int, steps: int) -> bool:
    """Whether the state after so many of a run's steps is evaluated.

    It is whenever it is saved, too, where the best of what is saved is kept.
    """
    kept = checkpoint.keep_best > 0 and save_due(checkpoint, done, steps)
    return done == steps or done % evaluation.every == 0 or kept


def _between(job: Job, state: TrainState, done: int, stop: StopRequest, asked: bool) -> bool:
    """Saves and then evaluates the state between two steps, where that is due; whether to stop, with the state saved.

    `asked` says whether a stop is asked for already: then nothing is evaluated.
    """
    saved = asked or save_due(job.checkpoint, done, job.steps)
    if saved:
        job.save(state, done)
    if evaluation_due(job.evaluation, job.checkpoint, done, job.steps):
        stop.left_off = asked or not _evaluated(job, state, done, saved)
    asked = asked or stop.left_off or stop.asked() or job.enough()
    if asked and not saved:
        job.save(state, done)
    return asked


def _evaluated(job: Job, state: TrainState, done: int, saved: bool) -> bool:
    """Evaluates the state; False where a stop that is asked for interrupts it. A failure loses no step: it saves first.

    Where a run has several processes, it may fail in one of them alone, which cannot save without the others.
    """
    try:
        values = job.evaluate(state, done)
    except Interrupted:
        return False
    except Exception:
        if not saved and jax.process_count() == 1:
            job.save(state, done)
        raise
    if saved:
        job.evaluated(done, values)
    return True


def _save_unsaved(job: Job, state: TrainState, first: int, step: int) -> None:
    """Saves the state that a failed step left, unless it was begun with or is saved already.

    Where a run has several processes, the step may have failed in one of them alone, which cannot save without them.
    """
    done = int(jax.device_get(state.step))
    saved = done == first or (done == step and save_due(job.checkpoint, done, job.steps))
    if not saved and jax.process_count() == 1:
        job.save(state, done)


def _settle(job: Job, window: Window, step: int, metrics: Metrics) -> None:
    done = step + 1
    window.add(jax.device_get(metrics))
    if window.skipped_in_a_row >= job.abort_after_skipped:
        raise DivergedError(
            f"step {step}: {window.skipped_in_a_row} steps in a row had a loss or gradient that is not finite "
            f"(train.abort_after_skipped = {job.abort_after_skipped}); lower optimizer.learning_rate, or look at the "
            f"batch of step {step - job.abort_after_skipped + 1}"
        )
    if done % job.log.every == 0 or done == job.steps:
        values = window.flush() | job.meter.read()
        job.record(done, values)
        job.show(done, values)


@contextmanager
def _profiler(job: Job) -> Iterator[Callable[[int, TrainState], None]]:
    """A function to call before each step: it starts and ends the XLA profile of the steps that the log asks for.

    The devices are waited for at both ends, so that the profile holds those steps and no others. Python's own calls
    are not traced: they are most of such a file, and hooks in every thread of the process.
    """
    first, last = job.log.profile or (math.inf, math.inf)
    running = False
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0

    def before(step: int, state: TrainState) -> None:
        nonlocal running
        if step == first and job.profile_folder is not None:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(job.profile_folder), profiler_options=options)
            running = True
        elif running and step > last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
