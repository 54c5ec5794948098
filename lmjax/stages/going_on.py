"""What the stages that go on from a trained model share: rows and batches, and the parts that they hand to the loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.data.dialogue import Record
from lmjax.data.dialogue_records import Kind
from lmjax.data.dialogue_rows import open_sources
from lmjax.data.loader import RowLoader, ValidationBatches
from lmjax.data.packing import Rows
from lmjax.data.shards import TokenShards, open_shards
from lmjax.data.tokenizer import Tokenizer, tokenizer_fingerprint
from lmjax.errors import require
from lmjax.objective.weighted import Weighted
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.schedules import Schedule, make_schedule
from lmjax.parallel.mesh import check_mesh, make_mesh
from lmjax.parallel.multihost import is_first
from lmjax.parallel.rows import place_rows
from lmjax.parallel.shardings import parameter_shardings, state_shardings
from lmjax.recipe import to_json
from lmjax.rlhf_recipes import DPO, PPO, SFT, RewardModel
from lmjax.rlhf_settings import DialogueSettings, DialogueSourceSettings
from lmjax.settings import ModelSettings, OptimizerSettings, SourceSettings
from lmjax.stages.start import Start, place_of_file
from lmjax.training.checkpoint import Checkpointer
from lmjax.training.loop import Job, Metrics, Values, fit
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import Recorder
from lmjax.training.state import TrainState
from lmjax.training.stop import StopRequest
from lmjax.training.throughput import Meter

Stage = SFT | RewardModel | DPO | PPO


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

    recipe: Stage  # with its model filled in
    steps: int
    mesh: Mesh
    abstract: TrainState
    fresh: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batch_at: Callable[[int], Batch]
    tokens_per_step: int
    flops_per_token: float
    evaluate: Callable[[TrainState, int, Recorder], Values]
    finish: Callable[[TrainState], TrainState] = lambda state: state  # of the state that the last step saves


def train(
    training: Training, workdir: Path, tokenizer_folder: Path, stop: StopRequest, display: ProgressDisplay
) -> TrainState:
    """Runs the loop from this workdir's newest checkpoint, or else from a fresh state, and saves what it returns."""
    recipe = training.recipe
    with stop.deferred(), ExitStack() as stack:
        checkpointer = stack.enter_context(
            Checkpointer(
                workdir / "checkpoints" / recipe.name,
                recipe.checkpoint,
                recipe_json=to_json(recipe),
                tokenizer_folder=tokenizer_folder,
                report=display.say,
            )
        )
        state = checkpointer.restore(training.abstract) or training.fresh()
        first = int(jax.device_get(state.step))
        silent = not is_first()
        recorder = Recorder(workdir, tensorboard=recipe.log.tensorboard, resumed_at=first, silent=silent)
        stack.callback(recorder.close)
        display.start(recipe.name, training.steps, first)
        stack.callback(display.finish)

        def evaluate(state: TrainState, done: int) -> Values:
            values = training.evaluate(state, done, recorder)
            if values:
                recorder.write(done, values)
                display.say(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
            return values

        def save(state: TrainState, done: int, values: Values) -> None:
            checkpointer.save(training.finish(state) if done == training.steps else state, done, values)

        job = Job(
            steps=training.steps,
            step=training.step,
            batch_at=training.batch_at,
            tokens_in=lambda _: training.tokens_per_step,
            evaluate=evaluate,
            save=save,
            record=recorder.write,
            show=display.update,
            meter=Meter(training.flops_per_token, jax.devices()[0].device_kind, training.mesh.devices.size),
            evaluation=recipe.evaluation,
            checkpoint=recipe.checkpoint,
            log=recipe.log,
            prefetch=recipe.dialogue.prefetch,
            abort_after_skipped=recipe.train.abort_after_skipped,
            profile_folder=workdir / "profile",
        )
        return fit(job, state, stop)


def with_dropout(settings: ModelSettings, dropout: float | None) -> ModelSettings:
    """The same model with this dropout everywhere; None keeps what it has."""
    if dropout is None:
        return settings
    attention = dataclasses.replace(settings.attention, dropout=dropout)
    return dataclasses.replace(settings, dropout=dropout, attention=attention)


def mesh_for(recipe: Stage, settings: ModelSettings) -> Mesh:
    """The recipe's mesh. Raises UserError where it does not divide what it cuts."""
    mesh = make_mesh(recipe.mesh)
    check_mesh(dict(mesh.shape), settings, recipe.dialogue.loading, recipe.train.microbatches)
    return mesh


def open_dialogue(
    sources: Sequence[DialogueSourceSettings],
    settings: DialogueSettings,
    tokenizer: Tokenizer,
    kind: Kind,
    workdir: Path,
    display: ProgressDisplay,
) -> tuple[list[Rows], list[list[Record]]]:
    """The rows of each source and the records that they came from; says what was read, cut and left out.

    A path may begin with the name of another stage: its folder is beside this one's.
    """
    beside = [dataclasses.replace(source, path=str(place_of_file(source.path, workdir))) for source in sources]
    rows, counts, records = open_sources(beside, settings, tokenizer, kind)
    for source, count in zip(sources, counts, strict=True):
        display.say(f"{source.path}: {count} ({kind}s)")
    return rows, records


def loader_of(rows: Sequence[Rows], dialogue: DialogueSettings, batch_size: int | None = None) -> RowLoader:
    """The training batches of a stage's sources, mixed by their weights."""
    weights = [source.weight for source in dialogue.train]
    loading = dialogue.loading
    if batch_size is not None:
        loading = dataclasses.replace(loading, batch_size=batch_size)
    return RowLoader(rows, weights, loading)


def validation_of(rows: Sequence[Rows], dialogue: DialogueSettings) -> ValidationBatches:
    return ValidationBatches(rows, dialogue.sequence_length, dialogue.batch_size)


def placed(batch_at: Callable[[int], Batch], mesh: Mesh) -> Callable[[int], Batch]:
    return lambda step: place_rows(batch_at(step), mesh)


def planned_steps(recipe: Stage, rows: Sequence[Rows], batch_size: int) -> int:
    """The steps of the stage: those of its epochs over all rows, or train.steps."""
    if recipe.epochs is None:
        return recipe.train.steps
    return max(1, math.ceil(recipe.epochs * sum(map(len, rows)) / batch_size))


def optimizer_of(
    settings: OptimizerSettings, steps: int, logical_axes: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of parameters with these axes, for so many updates, and its learning rate."""
    schedule = make_schedule(settings.schedule, settings.learning_rate, steps)
    return make_optimizer(settings, schedule, logical_axes), schedule


def check_sources(recipe: Stage) -> None:
    """Raises UserError where there is nothing to train on."""
    train = recipe.dialogue.train
    require(bool(train), "dialogue.train", train, "at least one source", "add a DialogueSourceSettings")


def abstract_of(create: Callable[[Any], TrainState], init: Callable[[jax.Array], Any], axes: Any, mesh: Mesh) -> Any:
    """The shapes and shardings of the state that `create` makes of the parameters that `init` makes."""
    shapes = jax.eval_shape(lambda rng: create(init(rng)), jax.random.key(0))
    shardings = state_shardings(shapes, parameter_shardings(axes, mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def open_mix(
    sources: Sequence[SourceSettings], start: Start, workdir: Path, display: ProgressDisplay
) -> list[TokenShards]:
    """Pretraining text in the start's tokens, kept in the workdir."""
    fingerprint = tokenizer_fingerprint(start.tokenizer)
    opened = []
    for number, source in enumerate(sources):
        folder = workdir / "tokens" / f"mix-{number}"
        opened.append(open_shards(source, start.tokenizer, folder, fingerprint=fingerprint))
        display.say(f"mix: {opened[-1].manifest.source_name}: {opened[-1].tokens:,} tokens")
    return opened


def sums_over(
    reading: Callable[..., dict[str, Weighted]], params: Any, batches: ValidationBatches, mesh: Mesh, most: int | None
) -> dict[str, Weighted]:
    """What `reading` gives of a validation set, added up over its batches (the first `most`, where that is set)."""
    total: dict[str, Weighted] = {}
    for index in range(min(len(batches), most or len(batches))):
        sums = reading(params, place_rows(batches.batch_at(index), mesh))
        total = {name: total[name] + pair if total else pair for name, pair in sums.items()}
    return jax.device_get(total)


def mean_of(pair: Weighted) -> float:
    """The mean, on the host; NaN where there is nothing to average."""
    return float(pair.sum) / float(pair.weight) if pair.weight else math.nan
