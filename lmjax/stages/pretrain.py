"""Pretraining: next-token prediction from scratch on raw text."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import FIELD_DTYPES, TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.data.loader import Loader, validation_batches
from lmjax.data.ramp import BatchRamp
from lmjax.data.source_shares import lines_of, source_names
from lmjax.evaluate.samples import write_samples
from lmjax.evaluate.validation import Sums, sums_by_source, values_of
from lmjax.generate.decode import check_prompts
from lmjax.model.flops import count
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction, Weighted
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.schedules import make_schedule, token_clock
from lmjax.optim.train_state import TrainState
from lmjax.parallel import processes as multihost
from lmjax.parallel.executable import load_executable
from lmjax.parallel.mesh import check_mesh, make_mesh
from lmjax.parallel.shardings import abstract_state, batch_sharding, init_state, jit_eval, jit_step, place_batch
from lmjax.settings import DataSettings, ModelSettings
from lmjax.settings.recipe_files import Pretrain, flat, to_json
from lmjax.stages.prepare_data import Prepared, prepare
from lmjax.stages.train_stage import EvaluationLines, Outcome, Training, train
from lmjax.tokenizers.tokenizer import Tokenizer, build_tokenizer
from lmjax.training.loop import Metrics, Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.step import Step, make_eval_step, make_train_step
from lmjax.training.stop import StopRequest

TEXT_BYTES = "text_bytes"  # among the sums of an evaluation


@dataclass(frozen=True)
class Parts:
    """What a recipe's step is made of, before there are data or devices."""

    model: LanguageModel
    loss_fn: LossFunction
    optimizer: optax.GradientTransformation
    step: Step


def planned_model(recipe: Pretrain) -> ModelSettings:
    """The model with the vocabulary that is known before there are data: the table's rows, or the tokenizer's."""
    rows = recipe.model.vocab_size or planned_entries(recipe)
    return dataclasses.replace(recipe.model, vocab_size=rows)


def planned_entries(recipe: Pretrain) -> int | None:
    """The tokenizer's entries, as far as the settings or its files tell: later rows of the table are padding."""
    path = recipe.tokenizer.path
    if path and Path(path).exists():
        return build_tokenizer(recipe.tokenizer, ()).vocab_size
    return recipe.tokenizer.planned_vocab_size


def make_parts(recipe: Pretrain, settings: ModelSettings, platform: str, valid_vocab: int | None = None) -> Parts:
    """The model, loss, optimizer and step of a recipe, for `platform`; `settings` is its model, vocabulary included."""
    segmented = recipe.data.isolate_documents or recipe.data.packing == "first_fit"
    model = LanguageModel(settings, recipe.compute, platform, segmented)
    model.implementation(recipe.data.sequence_length)  # raises here, not when the first step is traced
    train = recipe.train
    loss_fn = language_loss(model, z_loss=train.z_loss, label_smoothing=train.label_smoothing, valid_vocab=valid_vocab)
    ramp = BatchRamp(recipe.data)
    clock = token_clock(ramp.table.first_steps, ramp.step_tokens, ramp.table.tokens_before, row=1)
    schedule = make_schedule(recipe.optimizer.schedule, recipe.optimizer.learning_rate, train.steps, clock)
    optimizer = make_optimizer(recipe.optimizer, schedule, model.logical_axes())
    step = make_train_step(loss_fn, optimizer, microbatches=train.microbatches, seed=train.seed, schedule=schedule)
    return Parts(model, loss_fn, optimizer, step)


def abstract_batch(data: DataSettings, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of a full batch on a mesh."""
    shape, sharding = (data.batch_size, data.sequence_length), batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in FIELD_DTYPES.items()}


def about_step(recipe: Pretrain, entries: int | None) -> dict[str, Any]:
    """The fields that decide a recipe's compiled step, beside its mesh: to tell what another one differs in."""
    fields = flat(json.loads(to_json(recipe)))
    decides = ("model.", "compute.", "optimizer.", "train.")
    data = ("data.sequence_length", "data.batch_size", "data.packing", "data.isolate_documents", "data.ramp")
    kept = {name: value for name, value in fields.items() if name.startswith((*decides, *data))}
    kept.pop("train.abort_after_skipped")
    return kept | {"tokenizer's entries": entries}


def pretrain(
    recipe: Pretrain, workdir: Path, stop: StopRequest, display: ProgressDisplay, executable: Path | None = None
) -> Outcome:
    """Trains to the recipe's last step, or until `stop` asks; the same call resumes. What is returned is saved.

    The step is compiled, or loaded from the file `executable`, which is refused where it holds another one. Raises
    Stopped when `stop` asks before there is anything to save.
    """
    mesh = make_mesh(recipe.mesh)
    check_mesh(dict(mesh.shape), recipe.model, recipe.data, recipe.train.microbatches)
    with multihost.first_before_others("prepared"):
        prepared = prepare(recipe, workdir, display)
    vocab = prepared.tokenizer.vocab_size
    settings = dataclasses.replace(recipe.model, vocab_size=recipe.model.vocab_size or vocab)
    check_mesh(dict(mesh.shape), settings, recipe.data, recipe.train.microbatches)
    parts = make_parts(recipe, settings, jax.default_backend(), vocab)
    loader = Loader(prepared.train, [source.weight for source in recipe.data.train], recipe.data)
    sizes, read = [shards.tokens for shards in prepared.train], loader.epochs_at(recipe.train.steps)
    for line in lines_of(recipe.data.train, sizes, read, "tokens"):
        display.say(line)
    counted = count(settings, recipe.data.sequence_length)
    display.say(f"{counted.parameters:,} parameters on {mesh.devices.size} x {jax.devices()[0].device_kind}")
    if jax.process_count() > 1 and recipe.evaluation.prompts:
        display.say("evaluation.prompts: not continued in a run of several processes; use lmjax generate")
    abstract = abstract_state(parts.model, parts.optimizer, mesh)
    step: Any = jit_step(parts.step, abstract, mesh, recipe.compute)
    if executable is not None:
        lowered = step.lower(abstract, abstract_batch(recipe.data, mesh))
        loaded = load_executable(executable, lowered, mesh, about_step(recipe, vocab), recipe.compute)
        display.say(f"the step was loaded from {executable}")
        step = _by_rows(recipe.data.batch_size, loaded, step)
    training = Training(
        recipe=recipe,
        stage="pretrain",
        steps=recipe.train.steps,
        mesh=mesh,
        abstract=abstract,
        fresh=lambda: init_state(parts.model, parts.optimizer, recipe.train.seed, mesh),
        step=step,
        batch_at=_placed(loader.batch_at, loader.batch_size_at, recipe.data, mesh),
        tokens_in=lambda step: loader.batch_size_at(step) * recipe.data.sequence_length,
        prefetch=recipe.data.prefetch,
        flops_per_token=counted.flops_per_token,
        evaluate=_evaluation(recipe, parts, abstract, mesh, prepared, stop, display),
        read_so_far=lambda done: _epochs(loader, done),
    )
    state = train(training, workdir, prepared.tokenizer_folder, stop, display)
    return Outcome(state, recipe.train.steps, settings, recipe.data.sequence_length)


def _by_rows(rows: int, full: Callable[..., Any], others: Callable[..., Any]) -> Callable[..., Any]:
    """A step that is `full` for batches of so many rows, and `others` for those of a ramp."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return (full if batch[TOKENS].shape[0] == rows else others)(state, batch)

    return step


def _placed(
    batch_at: Callable[..., Any], rows_at: Callable[[int], int], data: DataSettings, mesh: Mesh
) -> Callable[[int], Any]:
    def placed(step: int) -> Any:
        return place_batch(lambda rows: batch_at(step, rows), rows_at(step), data.sequence_length, mesh)

    return placed


def _epochs(loader: Loader, done: int) -> Values:
    epochs = loader.epochs_at(done)
    return {"epochs": epochs[0]} if len(epochs) == 1 else {f"epochs/{i}": share for i, share in enumerate(epochs)}


def _evaluation(
    recipe: Pretrain,
    parts: Parts,
    abstract: TrainState,
    mesh: Mesh,
    prepared: Prepared,
    stop: StopRequest,
    display: ProgressDisplay,
) -> Callable[[TrainState, int, EvaluationLines], Values]:
    """Loss, perplexity and bits per byte on the validation set, and a continuation of each prompt."""
    settings, tokenizer = recipe.evaluation, prepared.tokenizer
    validation = validation_batches(prepared.validation, recipe.data, recipe.data.batch_size)
    names = source_names(recipe.data.validation)
    step = jit_eval(make_eval_step(parts.loss_fn), abstract, mesh)
    batch = _placed(validation.batch_at, lambda _: validation.batch_size, recipe.data, mesh)
    prompts = list(settings.prompts) if jax.process_count() == 1 else []  # `pretrain` says so
    check_prompts("evaluation.prompts", prompts, tokenizer, parts.model.settings.context)
    lengths = _byte_lengths(tokenizer, display)

    @functools.cache
    def counted(number: int) -> Sums:
        return {} if lengths is None else {TEXT_BYTES: _text_bytes(validation.batch_at(number), lengths)}

    def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
        def reading(number: int) -> Sums:
            return step(state.params, batch(number)) | counted(number)

        sums = sums_by_source(reading, validation, settings.batches, stop)
        write_samples(parts.model, state.params, tokenizer, settings, prompts, lines, done, stop)
        return values_of(names, sums, _quality)

    return evaluate


def _quality(sums: Sums) -> Values:
    """Of text that is predicted: the loss per token, its exponential and, where bytes were counted, bits per byte."""
    loss = float(sums["cross_entropy"].mean())
    values = {VALIDATION_LOSS: loss, "validation_perplexity": math.exp(min(loss, 700.0))}
    if TEXT_BYTES in sums:
        count = int(sums[TEXT_BYTES].sum)
        nats = float(sums["cross_entropy"].sum)
        values |= {"bits_per_byte": nats / count / math.log(2)} if count else {}
    return values


def _byte_lengths(tokenizer: Tokenizer, display: ProgressDisplay) -> np.ndarray | None:
    """The bytes that each token stands for; None, said aloud, where bits per byte would not be those of the text."""
    lengths = tokenizer.byte_lengths() if tokenizer.lossless else None
    if lengths is None:
        lost = "it loses text" if not tokenizer.lossless else "its tokens do not tell how many bytes they stand for"
        display.say(f"no bits per byte with this {tokenizer.kind} tokenizer: {lost}; the loss is told per token alone")
    return lengths


def _text_bytes(batch: Batch, lengths: np.ndarray) -> Weighted:
    """The bytes of a batch's targets, those of no weight left out: a whole number, on the host."""
    counted = batch[WEIGHTS] > 0
    return Weighted(lengths[batch[TARGETS][counted]].sum(), counted.sum())
