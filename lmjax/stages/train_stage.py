"""Runs a training stage: a task, or parts of its own, handed to the one loop with checkpoints, record and display."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmjax.bucket import checkpoints_of
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.checkpoints.remote_workdir import mirror
from lmjax.data.batch import INPUTS, TOKENS, Batch, BatchSpec
from lmjax.data.buckets import BucketLoader, RaggedLengths
from lmjax.data.loader import RowLoader
from lmjax.data.ramp import BatchRamp
from lmjax.errors import require
from lmjax.evaluate.samples import EvaluationLines
from lmjax.model.families import model_of
from lmjax.optim.train_state import TrainState
from lmjax.parallel import processes
from lmjax.parallel.executable import load_executable
from lmjax.parallel.placement import abstract_params, init_state, place_whole, placed_batch, shardings_of
from lmjax.run_files import METRICS_FILE, WALL_SECONDS
from lmjax.settings import ModelSettings, TrainingStage
from lmjax.settings.recipe_files import flat, plain, to_json
from lmjax.stages.first_lines import SPEED, hours_line, model_line, saying_compiling, steps_line
from lmjax.tasks.program import Program, platform_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Job, Metrics, Values, evaluation_due, fit
from lmjax.training.patience import Patience
from lmjax.training.record import Recorder
from lmjax.training.stop import Interrupted
from lmjax.training.throughput import Meter
from lmjax.training.trackers import Tracked, Tracker, open_trackers


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves for its summary."""

    state: TrainState
    steps: int  # of the whole stage
    model: ModelSettings
    sequence_length: int
    tokens: int  # of all batches of the whole stage, padding included
    flops_per_token: float  # as the step's throughput counts them
    devices: int


@dataclass(frozen=True)
class Training:
    """A stage's own parts."""

    recipe: TrainingStage  # as its checkpoints keep it
    steps: int
    mesh: Mesh
    abstract: TrainState
    fresh: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batch_at: Callable[[int], Batch]
    tokens_in: Callable[[int], int]  # tokens of the batch of a step
    flops_per_token: float
    evaluate: Evaluate
    finish: Callable[[TrainState], TrainState] | None = None  # of the state that the last step saves; done twice, it
    # changes nothing more. Interrupted where a stop is asked for
    progress: Callable[[int], Values] = lambda done: {}  # recorded beside a step's metrics
    evaluates_fresh: bool = False  # whether the state before the first step is evaluated, too
    patience: Patience = field(default_factory=lambda: Patience(None, "validation_loss"))


def train_task(task: Task, resolved: ResolvedStage, session: Session) -> Outcome:
    """Trains a task to the stage's last step, or until a stop is asked for; the same call resumes.

    What is returned is saved. Raises Stopped where a stop is asked for before there is anything to save.
    """
    stage = resolved.of(TrainingStage)
    resolved.check_lengths()
    mesh, model, spec = resolved.mesh(), resolved.model, task.spec(resolved)
    fits = model.encoder_layers is None or INPUTS in spec
    fix = "name a decoder or an encoder, or use the task TextToText"
    require(fits, "start", stage.start, f"a model of one stack for {stage.kind!r}, not an encoder-decoder", fix)
    data = task.open(resolved, session)
    loader = loader_of(stage, data, spec)
    steps = planned_steps(stage, data, loader)
    program = task.build(resolved, mesh, steps)
    for line in data.shares(loader, steps):
        session.display.say(line)
    length, row = stage.loading.sequence_length, _row_tokens(spec)
    session.display.say(model_line(model, length))

    def tokens_at(step: int) -> int:
        return loader.tokens_at(step) * row // length  # a row of several sequences counts them all

    session.display.say(steps_line(steps, stage.loading.batch_size, row, tokens_at(steps)))
    frozen = _frozen(program, resolved)
    run = TaskRun(resolved, mesh, program, frozen, data, loader, session)
    step = _step(program, resolved, mesh, session)
    axes, flops = program.axes, task.flops_per_token(resolved)
    patience = Patience(stage.evaluation.patience, stage.checkpoint.best_by)
    training = Training(
        recipe=_kept(resolved),
        steps=steps,
        mesh=mesh,
        abstract=program.abstract,
        fresh=lambda: _fresh(task, program, resolved, mesh, frozen),
        step=saying_compiling(lambda state, batch: step(state, *frozen, batch), session),
        batch_at=lambda at: placed_batch(loader, at, mesh, axes),
        tokens_in=lambda at: loader.batch_size_at(at) * loader.length_at(at) * row // length * task.copies,
        flops_per_token=flops,
        evaluate=task.evaluation(run),
        finish=task.finish(run),
        progress=lambda done: task.progress(loader, done),
        patience=patience,
    )
    state = train(training, resolved, session)
    steps = int(jax.device_get(state.step)) if patience.exhausted else steps
    return Outcome(state, steps, model, length, tokens_at(steps), flops, mesh.devices.size)


def loader_of(stage: TrainingStage, data: TaskData, spec: BatchSpec) -> RowLoader | BucketLoader:
    """The training batches of a task's rows; in buckets where the recipe names some."""
    if not stage.buckets:
        return RowLoader(data.train, data.weights, stage.loading)
    return BucketLoader(cast(Sequence[RaggedLengths], data.train), stage.loading, stage.buckets, spec)


def _row_tokens(spec: BatchSpec) -> int:
    """The tokens of a row of the full length, those of its inputs and of all its sequences included."""
    full = {name: math.prod(spec[name].shape[1:]) for name in (TOKENS, INPUTS) if name in spec}
    return sum(full.values())


def planned_steps(stage: TrainingStage, data: TaskData, loader: RowLoader | BucketLoader | None = None) -> int:
    """The steps of a stage: train.steps, or those of its epochs over the rows that these count."""
    epochs = getattr(stage, "epochs", None)
    if epochs is None:
        return stage.train.steps
    if isinstance(loader, BucketLoader):
        return max(1, math.ceil(epochs * loader.batches_per_epoch))
    wanted, size, earlier = epochs * data.epoch_rows, stage.loading.batch_size, stage.loading.earlier_batches
    if not earlier:
        return max(1, math.ceil(wanted / (size * (1.0 - data.mixed))))
    changed = earlier[-1][0]
    left = wanted / (1.0 - data.mixed) - BatchRamp(stage.loading).rows_at(changed)
    return max(1, changed + math.ceil(left / size))


def _kept(resolved: ResolvedStage) -> TrainingStage:
    """The recipe that checkpoints keep: what its start and the data tell is filled in, how it is laid out is not."""
    recipe, settings = resolved.recipe, resolved.of(TrainingStage)
    assert isinstance(recipe, TrainingStage)
    if recipe.own_model:
        return recipe
    return dataclasses.replace(settings, mesh=recipe.mesh, compute=recipe.compute, train=recipe.train)


def _frozen(program: Program, resolved: ResolvedStage) -> tuple[Any, ...]:
    if not program.frozen:
        return ()
    assert resolved.start is not None
    return tuple(resolved.start.language_model(abstract) for abstract in program.frozen)


def _fresh(task: Task, program: Program, resolved: ResolvedStage, mesh: Mesh, frozen: tuple[Any, ...]) -> TrainState:
    """The state before the first step: from the initial checkpoint, or else by the seed."""
    stage = resolved.of(TrainingStage)
    assert program.optimizer is not None
    optimizer = program.optimizer
    if resolved.start is None:
        return init_state(program.model, optimizer, stage.train.seed, mesh)
    own = model_of(resolved.start.settings, stage.compute, platform_of(mesh))
    shapes = task.language_model(program.abstract.params)
    grown = jax.tree.map(lambda leaf: leaf.shape, shapes) != jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(own.init, jax.random.key(0))
    )
    params = frozen[0] if frozen else resolved.start.language_model(abstract_params(own, mesh) if grown else shapes)

    def create(params: Any) -> TrainState:
        if grown:
            fresh = task.language_model(program.model.init(jax.random.key(stage.train.seed)))
            params = jax.tree.map(with_more_rows, params, fresh)
        initial = task.initial(program.model, params, jax.random.key(stage.train.seed))
        return TrainState.create(initial, optimizer)

    return jax.jit(create, out_shardings=shardings_of(program.abstract))(params)


def with_more_rows(kept: jax.Array, fresh: jax.Array) -> jax.Array:
    """A table whose first rows are kept and the others fresh; one of as many rows is as it was."""
    return jnp.concatenate([kept, fresh[kept.shape[0] :]]) if kept.shape != fresh.shape else kept


def _step(program: Program, resolved: ResolvedStage, mesh: Mesh, session: Session) -> Callable[..., Any]:
    """(state, *frozen, batch) -> (state, metrics), its numbers on the mesh; by the executable that the session names.

    Raises UserError where that is another program's. Batches of other sizes than the full one are compiled.
    """
    numbers = place_whole(program.numbers, mesh)
    if session.executable is None:
        return program.with_numbers(program.jitted, numbers)
    compute, rows = resolved.settings.compute, resolved.settings.loading.batch_size
    loaded = load_executable(session.executable, program.lower(), mesh, about_step(resolved), compute)
    session.display.say(f"the step was loaded from {session.executable}")
    return program.with_numbers(by_rows(rows, loaded, program.jitted), numbers)


def by_rows(rows: int, full: Callable[..., Any], others: Callable[..., Any]) -> Callable[..., Any]:
    """A step that is `full` for batches of so many rows, and `others` for those of a ramp."""

    def step(state: TrainState, *rest: Any) -> Any:
        return (full if rest[-1][TOKENS].shape[0] == rows else others)(state, *rest)

    return step


def about_step(resolved: ResolvedStage) -> dict[str, Any]:
    """The fields that decide a stage's compiled step, beside its mesh: to tell what another one differs in."""
    fields = flat(json.loads(to_json(resolved.decided)))
    parts = ("model.", "compute.", "optimizer.", "train.")
    data = ("data.sequence_length", "data.batch_size", "data.packing", "data.isolate_documents", "data.ramp")
    kept = {name: value for name, value in fields.items() if name.startswith((*parts, *data))}
    own = ("train.abort_after_skipped", "train.seed", "train.steps", "optimizer.learning_rate")
    course = tuple(f"optimizer.schedule.{name}" for name in ("warmup", "decay", "stable"))
    decides = {name: value for name, value in kept.items() if name not in own + course}
    return decides | {"tokenizer's entries": resolved.entries}


def train(training: Training, resolved: ResolvedStage, session: Session) -> TrainState:
    """Runs the loop from this workdir's newest checkpoint, or else from a fresh state, and saves what it returns.

    Raises UserError where the workdir is further than the stage's last step.
    """
    recipe, workdir, display, stop = training.recipe, resolved.folder, session.display, session.stop
    with stop.deferred(), ExitStack() as stack:
        checkpointer = stack.enter_context(
            Checkpointer(
                checkpoints_of(workdir) / recipe.checkpoints_folder,
                recipe.checkpoint,
                recipe_json=to_json(recipe),
                tokenizer_folder=resolved.tokenizer_folder,
                report=display.say,
            )
        )
        # The order: this workdir's newest checkpoint, or else what the stage is initialised from.
        state = checkpointer.restore(training.abstract) or training.fresh()
        first = int(jax.device_get(state.step))
        fix = f"raise it, or choose another --workdir than {workdir}"
        require(first <= training.steps, "train.steps", training.steps, f"{first}, the step reached", fix)
        silent = not processes.is_first()
        recorder = Recorder(workdir, resumed_at=first, silent=silent, trackers=partial(_trackers, recipe, workdir))
        stack.callback(recorder.close)
        if first >= recipe.log.every and not recorder.kept:
            display.say(f"{workdir / METRICS_FILE}: no line up to step {first} is left; the record begins here")
        display.start(recipe.name, training.steps, first)
        stack.callback(display.finish)
        training.patience.see(recorder.kept)
        job = _job(training, checkpointer, recorder, workdir, session)
        if stop.signal is None and missing_evaluation(
            recipe, recorder.kept, first, training.steps, fresh=training.evaluates_fresh
        ):
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
        if training.patience.exhausted:
            return state
        state = fit(job, state, stop)
        done = int(jax.device_get(state.step))
        if first < done < training.steps and done % recipe.log.every:  # stopped at a step without a line of its own
            recorder.write(done, _time(session))
        return state


def _trackers(recipe: TrainingStage, workdir: Path, next_step: int) -> list[Tracker]:
    run = Tracked(workdir, recipe.name, flat(plain(recipe)), next_step)
    return open_trackers(recipe.log.trackers, run, tensorboard=recipe.log.tensorboard)


def _time(session: Session) -> Values:
    """How long the stage has run, for its record."""
    return {WALL_SECONDS: session.seconds()}


def _job(training: Training, checkpointer: Checkpointer, recorder: Recorder, workdir: Path, session: Session) -> Job:
    recipe, display = training.recipe, session.display

    def evaluate(state: TrainState, done: int) -> Values:
        lines = EvaluationLines()
        values = training.evaluate(state, done, lines)
        for line in lines.written:  # once the evaluation is whole: an interrupted one is done again
            recorder.write(done, line)
        if values:
            training.patience.see([values])
            recorder.write(done, values)
            display.say(f"step {done}: {', '.join(_described(*item) for item in values.items())}")
        return values

    def save(state: TrainState, done: int) -> None:
        if done == training.steps and training.finish is not None:
            with suppress(Interrupted):  # `train` finishes what is saved here unfinished
                state = training.finish(state)
        mirror(workdir)  # first, so that a checkpoint has its record beside it
        checkpointer.save(state, done, {})

    first_speed = True

    def show(done: int, values: Values) -> None:
        nonlocal first_speed
        display.update(done, values)
        if first_speed and SPEED in values and done < training.steps:
            first_speed = False
            display.say(hours_line(training.steps, done, values))

    return Job(
        steps=training.steps,
        step=training.step,
        batch_at=training.batch_at,
        tokens_in=training.tokens_in,
        evaluate=evaluate,
        save=save,
        evaluated=checkpointer.evaluated,
        record=lambda done, values: recorder.write(done, values | training.progress(done) | _time(session)),
        show=show,
        meter=Meter(training.flops_per_token, jax.devices()[0].device_kind, training.mesh.devices.size),
        evaluation=recipe.evaluation,
        checkpoint=recipe.checkpoint,
        log=recipe.log,
        prefetch=recipe.loading.prefetch,
        abort_after_skipped=recipe.train.abort_after_skipped,
        profile_folder=workdir / "profile",
        enough=lambda: training.patience.exhausted,
    )


def missing_evaluation(
    recipe: TrainingStage, lines: Sequence[dict[str, Any]], done: int, steps: int, *, fresh: bool = False
) -> bool:
    """Whether the state after so many of a run's `steps`, whose record is `lines`, is still to be evaluated.

    A run that was stopped does not wait for an evaluation. With `fresh` the state before the first step has one, too.
    """
    due = evaluation_due(recipe.evaluation, recipe.checkpoint, done, steps) and (done > 0 or fresh)
    names = {name for line in lines if line["step"] == done for name in line}
    return due and not any(name.startswith("validation_") or name == "sample" for name in names)


def _described(name: str, value: float) -> str:
    """A number of an evaluation in words; behind a "/" is the source that it is of."""
    quantity, of, source = name.partition("/")
    return f"{quantity.replace('_', ' ')}{' of ' if of else ''}{source} {value:.4g}"
