"""Pretraining: next-token prediction from scratch on raw text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lmjax.data.loader import Loader, ValidationBatches, validation_batches
from lmjax.data.ramp import BatchRamp
from lmjax.errors import require
from lmjax.generate.decode import SamplingSettings, generate
from lmjax.model.count import count
from lmjax.model.language_model import LanguageModel
from lmjax.objective.language import language_loss
from lmjax.objective.weighted import LossFunction
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.schedules import make_schedule, token_clock
from lmjax.parallel import multihost
from lmjax.parallel.mesh import check_mesh, make_mesh
from lmjax.parallel.shardings import abstract_state, init_state, jit_eval, jit_step, place_batch
from lmjax.recipe import Pretrain, to_json
from lmjax.settings import DataSettings, ModelSettings
from lmjax.stages.prepare import Prepared, prepare
from lmjax.training.checkpoint import VALIDATION_LOSS, Checkpointer
from lmjax.training.loop import Job, Values, fit
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import Recorder
from lmjax.training.state import TrainState
from lmjax.training.step import Step, make_eval_step, make_train_step
from lmjax.training.stop import StopRequest
from lmjax.training.throughput import Meter


@dataclass(frozen=True)
class Parts:
    """What a recipe's step is made of, before there are data or devices."""

    model: LanguageModel
    loss_fn: LossFunction
    optimizer: optax.GradientTransformation
    step: Step


def planned_model(recipe: Pretrain) -> ModelSettings:
    """The model with the vocabulary that the recipe alone tells: the table's rows, or the tokenizer's entries."""
    rows = recipe.model.vocab_size or recipe.tokenizer.planned_vocab_size
    return dataclasses.replace(recipe.model, vocab_size=rows)


def make_parts(recipe: Pretrain, settings: ModelSettings, platform: str, valid_vocab: int | None = None) -> Parts:
    """The model, loss, optimizer and step of a recipe, for `platform`; `settings` is its model, vocabulary included."""
    segmented = recipe.data.isolate_documents or recipe.data.packing == "first_fit"
    model = LanguageModel(settings, recipe.compute, platform, segmented)
    model.implementation(recipe.data.sequence_length)  # raises here, not when the first step is traced
    train = recipe.train
    loss_fn = language_loss(model, z_loss=train.z_loss, label_smoothing=train.label_smoothing, valid_vocab=valid_vocab)
    ramp = BatchRamp(recipe.data).table
    clock = token_clock(*ramp, row=recipe.data.sequence_length)
    schedule = make_schedule(recipe.optimizer.schedule, recipe.optimizer.learning_rate, train.steps, clock)
    optimizer = make_optimizer(recipe.optimizer, schedule, model.logical_axes())
    step = make_train_step(loss_fn, optimizer, microbatches=train.microbatches, seed=train.seed, schedule=schedule)
    return Parts(model, loss_fn, optimizer, step)


def pretrain(
    recipe: Pretrain, workdir: Path, stop: StopRequest, display: ProgressDisplay
) -> tuple[TrainState, LanguageModel]:
    """Trains to the recipe's last step, or until `stop` asks; the same call resumes. What is returned is saved.

    Raises Stopped when `stop` asks before there is anything to save.
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
    validation = validation_batches(prepared.validation, recipe.data, recipe.data.batch_size)

    with stop.deferred(), ExitStack() as stack:
        checkpointer = stack.enter_context(_checkpointer(recipe, workdir, prepared, display))
        abstract = abstract_state(parts.model, parts.optimizer, mesh)
        # The order: this workdir's newest checkpoint, or else a fresh start.
        state = checkpointer.restore(abstract) or init_state(parts.model, parts.optimizer, recipe.train.seed, mesh)
        first = int(jax.device_get(state.step))
        fix = f"raise it, or choose another --workdir than {workdir}"
        require(first <= recipe.train.steps, "train.steps", recipe.train.steps, f"{first}, the step reached", fix)
        counted = count(settings, recipe.data.sequence_length)
        display.say(f"{counted.parameters:,} parameters on {mesh.devices.size} x {jax.devices()[0].device_kind}")
        silent = not multihost.is_first()
        if jax.process_count() > 1 and recipe.evaluation.prompts:
            display.say("evaluation.prompts: not continued in a run of several processes; use lmjax generate")
        recorder = Recorder(workdir, tensorboard=recipe.log.tensorboard, resumed_at=first, silent=silent)
        stack.callback(recorder.close)
        display.start(recipe.name, recipe.train.steps, first)
        stack.callback(display.finish)
        job = Job(
            steps=recipe.train.steps,
            step=jit_step(parts.step, state, mesh),
            batch_at=_placed(loader.batch_at, loader.batch_size_at, recipe.data, mesh),
            tokens_in=lambda step: loader.batch_size_at(step) * recipe.data.sequence_length,
            evaluate=_evaluation(recipe, parts, state, mesh, prepared, validation, recorder, display),
            save=checkpointer.save,
            record=lambda done, values: recorder.write(done, values | _epochs(loader, done)),
            show=display.update,
            meter=Meter(counted.flops_per_token, jax.devices()[0].device_kind, mesh.devices.size),
            evaluation=recipe.evaluation,
            checkpoint=recipe.checkpoint,
            log=recipe.log,
            prefetch=recipe.data.prefetch,
            abort_after_skipped=recipe.train.abort_after_skipped,
            profile_folder=workdir / "profile",
        )
        if stop.signal is None and _owes_evaluation(recipe, recorder, first):
            job.evaluate(state, first)
        state = fit(job, state, stop)
    return state, parts.model


def _owes_evaluation(recipe: Pretrain, recorder: Recorder, first: int) -> bool:
    """Whether the run was stopped, which does not wait for an evaluation, after a step that has one."""
    due = first > 0 and first % recipe.evaluation.every == 0
    return due and not any(VALIDATION_LOSS in line for line in recorder.kept if line["step"] == first)


def _checkpointer(recipe: Pretrain, workdir: Path, prepared: Prepared, display: ProgressDisplay) -> Checkpointer:
    return Checkpointer(
        workdir / "checkpoints" / "pretrain",
        recipe.checkpoint,
        recipe_json=to_json(recipe),
        tokenizer_folder=prepared.tokenizer_folder,
        report=display.say,
    )


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
    state: TrainState,
    mesh: Mesh,
    prepared: Prepared,
    validation: ValidationBatches,
    recorder: Recorder,
    display: ProgressDisplay,
) -> Callable[[TrainState, int], Values]:
    """Loss, perplexity and bits per byte on the validation set, and a continuation of each prompt."""
    settings = recipe.evaluation
    step = jit_eval(make_eval_step(parts.loss_fn), state, mesh)
    batches = min(len(validation), settings.batches or len(validation))
    batch = _placed(validation.batch_at, lambda _: validation.batch_size, recipe.data, mesh)
    tokens_per_byte = sum(s.tokens for s in prepared.validation) / sum(s.text_bytes for s in prepared.validation)
    sampling = SamplingSettings(max_tokens=settings.sample_tokens, temperature=settings.temperature)

    def evaluate(state: TrainState, done: int) -> Values:
        sums = [step(state.params, batch(i))["cross_entropy"] for i in range(batches)]
        loss = float(jax.device_get(sum(sums[1:], sums[0]).mean()))
        values = {
            VALIDATION_LOSS: loss,
            "validation_perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss * tokens_per_byte / math.log(2),
        }
        recorder.write(done, values)
        display.say(f"step {done}: validation loss {loss:.4f}, {values['bits_per_byte']:.3f} bits per byte")
        prompts = list(settings.prompts) if jax.process_count() == 1 else []  # `pretrain` says so
        if prompts:
            for prompt, completion in zip(
                prompts, generate(parts.model, state.params, prepared.tokenizer, prompts, sampling), strict=True
            ):
                recorder.write(done, {"prompt": prompt, "sample": completion.text})
        return values

    return evaluate
