"""What the stages that go on from a trained model share: rows and batches, steps, optimizers and validation sums."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.data.conversation_files import Kind
from lmjax.data.conversation_rows import open_sources
from lmjax.data.conversations import Record
from lmjax.data.loader import RowLoader, ValidationBatches
from lmjax.data.packing import Rows
from lmjax.data.ramp import BatchRamp
from lmjax.data.source_shares import lines_of
from lmjax.data.write_shards import TokenShards, open_shards
from lmjax.errors import require
from lmjax.evaluate.validation import Sums, sums_by_source
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.schedules import Schedule, make_schedule
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import check_mesh, make_mesh
from lmjax.parallel.rows import place_rows
from lmjax.parallel.shardings import parameter_shardings, state_shardings
from lmjax.settings import ModelSettings, OptimizerSettings, SourceSettings
from lmjax.settings.conversations import DialogueSettings, DialogueSourceSettings
from lmjax.settings.stages import DPO, PPO, SFT, Compare, RewardModel, check_best
from lmjax.stages.initial import Start, source_beside
from lmjax.tokenizers.tokenizer import Tokenizer, tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest

Stage = SFT | RewardModel | DPO | PPO


def with_dropout(settings: ModelSettings, dropout: float | None) -> ModelSettings:
    """The same model with this dropout everywhere; None keeps what it has."""
    if dropout is None:
        return settings
    attention = dataclasses.replace(settings.attention, dropout=dropout)
    return dataclasses.replace(settings, dropout=dropout, attention=attention)


def mesh_for(recipe: Stage, settings: ModelSettings) -> Mesh:
    """The recipe's mesh. Raises UserError where it does not divide what it cuts."""
    mesh = make_mesh(recipe.mesh)
    check_mesh(dict(mesh.shape), settings, recipe.dialogue.loading, recipe.train.microbatches, "dialogue")
    return mesh


def check_lengths(stage: Stage | Compare, model: ModelSettings, judge: ModelSettings | None = None) -> None:
    """Raises UserError where rows are longer than what reads them, `model` or the reward model `judge`, can read.

    A model whose positions are computed reads rows of any length, but samples only within its context.
    """
    field, longest = "dialogue.sequence_length", stage.dialogue.sequence_length
    sampled = isinstance(stage, PPO | Compare)
    if isinstance(stage, PPO):
        field, longest = f"{field} + ppo.response_tokens", longest + stage.ppo.response_tokens
    if isinstance(stage, Compare):
        field, longest = f"{field} + response_tokens", longest + stage.response_tokens
    for whose, settings in (("policy" if sampled else "model", model), ("reward model", judge)):
        if settings is not None and (sampled or settings.positions.kind == "learned"):
            expected = f"at most the {whose}'s context of {settings.context}"
            fix = "shorten prompts or responses" if sampled else "shorten the rows"
            require(longest <= settings.context, field, longest, expected, fix)


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
    beside = [source_beside(source, workdir) for source in sources]
    rows, counts, records = open_sources(beside, settings, tokenizer, kind)
    for source, count in zip(sources, counts, strict=True):
        display.say(f"{source.name}: {count} ({kind}s)")
        for warning in count.warnings:
            display.say(f"warning: {source.name}: {warning}")
    return rows, records


def loader_of(rows: Sequence[Rows], dialogue: DialogueSettings, batch_size: int | None = None) -> RowLoader:
    """The training batches of a stage's sources, mixed by their weights, or else by their rows."""
    weights = [source.weight for source in dialogue.train]
    loading = dialogue.loading
    if batch_size is not None:
        loading = dataclasses.replace(loading, batch_size=batch_size)
    return RowLoader(rows, weights, loading)


def say_shares(
    sources: Sequence[DialogueSourceSettings], loader: RowLoader, steps: int, display: ProgressDisplay
) -> None:
    """Says how much of each source of dialogue the stage reads; they come first among those of the loader."""
    count = len(sources)
    for line in lines_of(sources, loader.rows_per_epoch[:count], loader.epochs_at(steps)[:count], "rows"):
        display.say(line)


def say_mix(
    sources: Sequence[SourceSettings],
    texts: Sequence[TokenShards],
    loader: RowLoader,
    steps: int,
    display: ProgressDisplay,
) -> None:
    """Says how much of each pretraining text the stage reads; they come last among those of the loader."""
    epochs = loader.epochs_at(steps)
    epochs = epochs[len(epochs) - len(sources) :]
    for line in lines_of(sources, [shards.tokens for shards in texts], epochs, "tokens"):
        display.say(f"mix: {line}")


def placed(batch_at: Callable[[int], Batch], mesh: Mesh) -> Callable[[int], Batch]:
    return lambda step: place_rows(batch_at(step), mesh)


def planned_steps(recipe: Stage, rows: Sequence[Rows], batch_size: int) -> int:
    """The steps of the stage: those of its epochs over all rows, or train.steps. Rows of a mix are not among `rows`."""
    if recipe.epochs is None:
        return recipe.train.steps
    mixed = recipe.mix_share if isinstance(recipe, SFT) and recipe.mix else 0.0
    wanted, earlier = recipe.epochs * sum(map(len, rows)), recipe.dialogue.earlier_batches
    if not earlier:
        return max(1, math.ceil(wanted / (batch_size * (1.0 - mixed))))
    changed = earlier[-1][0]
    left = wanted / (1.0 - mixed) - BatchRamp(recipe.dialogue.loading).rows_at(changed)
    return max(1, changed + math.ceil(left / batch_size))


def optimizer_of(
    settings: OptimizerSettings, steps: int, logical_axes: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of parameters with these axes, for so many updates, and its learning rate."""
    schedule = make_schedule(settings.schedule, settings.learning_rate, steps)
    return make_optimizer(settings, schedule, logical_axes), schedule


def check_sources(recipe: Stage) -> None:
    """Raises UserError where there is nothing to train on, or nothing that tells which checkpoints are the best."""
    train = recipe.dialogue.train
    require(bool(train), "dialogue.train", train, "at least one source", "add a DialogueSourceSettings")
    check_best(recipe)


def abstract_of(create: Callable[[Any], TrainState], init: Callable[[jax.Array], Any], axes: Any, mesh: Mesh) -> Any:
    """The shapes and shardings of the state that `create` makes of the parameters that `init` makes."""
    shapes = jax.eval_shape(lambda rng: create(init(rng)), jax.random.key(0))
    shardings = state_shardings(shapes, parameter_shardings(axes, mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def open_mix(
    sources: Sequence[SourceSettings], start: Start, workdir: Path, say: Callable[[str], None]
) -> list[TokenShards]:
    """Pretraining text in the start's tokens, kept in the workdir."""
    fingerprint = tokenizer_fingerprint(start.tokenizer)
    opened = []
    for number, source in enumerate(sources):
        known = hashlib.sha256(f"{source}\0{fingerprint}".encode()).hexdigest()[:12]
        folder = workdir / "tokens" / f"mix-{number}-{known}"
        opened.append(open_shards(source, start.tokenizer, folder, fingerprint=fingerprint, say=say))
    return opened


def sums_over(
    reading: Callable[..., Sums],
    params: Any,
    rows: Sequence[Rows],
    dialogue: DialogueSettings,
    mesh: Mesh,
    most: int | None,
    stop: StopRequest,
) -> list[Sums]:
    """What `reading` gives of each source of a validation set: see stages/validation.py."""
    batches = ValidationBatches(rows, dialogue.sequence_length, dialogue.batch_size)
    return sums_by_source(
        lambda number: reading(params, place_rows(batches.batch_at(number), mesh)), batches, most, stop
    )
