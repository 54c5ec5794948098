"""Supervised fine-tuning: loss on the assistant's tokens, with pretraining text mixed in where the recipe has some."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from lmjax.data.loader import RowLoader
from lmjax.data.packing import pack
from lmjax.model.count import count
from lmjax.parallel.rows import compile_reading, shardings_of
from lmjax.rlhf_recipes import SFT
from lmjax.stages.going_on import (
    check_lengths,
    check_sources,
    mean_of,
    mesh_for,
    open_dialogue,
    open_mix,
    placed,
    planned_steps,
    sums_over,
    validation_of,
    with_dropout,
)
from lmjax.stages.judge import Judge
from lmjax.stages.start import open_start
from lmjax.stages.steps import sft_step
from lmjax.stages.texts import write_samples
from lmjax.stages.training import Outcome, Training, train
from lmjax.training.checkpoint import VALIDATION_LOSS, VALIDATION_REWARD
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import Recorder
from lmjax.training.state import TrainState
from lmjax.training.step import make_eval_step
from lmjax.training.stop import StopRequest


def sft(recipe: SFT, workdir: Path, stop: StopRequest, display: ProgressDisplay) -> Outcome:
    """Fine-tunes to the stage's last step, or until `stop` asks; the same call resumes. What is returned is saved."""
    check_sources(recipe)
    start = open_start(recipe.start, workdir)
    recipe = dataclasses.replace(recipe, model=with_dropout(start.settings, recipe.dropout))
    assert recipe.model is not None
    dialogue, settings = recipe.dialogue, recipe.model
    check_lengths(recipe, settings)
    mesh = mesh_for(recipe, settings)
    rows, _ = open_dialogue(dialogue.train, dialogue, start.tokenizer, "demonstration", workdir, display)
    held_out, _ = open_dialogue(dialogue.validation, dialogue, start.tokenizer, "demonstration", workdir, display)
    steps = planned_steps(recipe, rows, dialogue.batch_size)
    sources, weights = rows, [source.weight for source in dialogue.train]
    if recipe.mix:
        texts = open_mix(recipe.mix, start, workdir, display)
        share = recipe.mix_share / (1.0 - recipe.mix_share) * sum(weights) / sum(s.weight for s in recipe.mix)
        packed = [pack(shards, dialogue.loading, keep_rest=False) for shards in texts]
        sources, weights = [*rows, *packed], [*weights, *(source.weight * share for source in recipe.mix)]

    step = sft_step(recipe, settings, mesh, steps=steps, entries=start.tokenizer.vocab_size)
    model, optimizer, abstract = step.model, step.optimizer, step.abstract
    reading = compile_reading(make_eval_step(step.loss_of()), mesh, abstract.params)

    judge = Judge(recipe, start, model, mesh, workdir, display) if recipe.judge else None

    def evaluate(state: TrainState, done: int, recorder: Recorder) -> Values:
        template = dialogue.template
        write_samples(model, state.params, start.tokenizer, recipe.evaluation, template, recorder, done)
        if not held_out:
            return {}
        sums = sums_over(reading, state.params, validation_of(held_out, dialogue), mesh, recipe.evaluation.batches)
        values = {VALIDATION_LOSS: mean_of(sums["cross_entropy"]), "validation_accuracy": mean_of(sums["accuracy"])}
        return values | ({} if judge is None else {VALIDATION_REWARD: judge(state.params)})

    def fresh() -> TrainState:
        params = start.language_model(abstract.params)
        return jax.jit(lambda params: TrainState.create(params, optimizer), out_shardings=shardings_of(abstract))(
            params
        )

    tokens = dialogue.batch_size * dialogue.sequence_length
    training = Training(
        recipe=recipe,
        stage=recipe.name,
        steps=steps,
        mesh=mesh,
        abstract=abstract,
        fresh=fresh,
        step=step.compiled,
        batch_at=placed(RowLoader(sources, weights, dialogue.loading).batch_at, mesh),
        tokens_in=lambda _: tokens,
        prefetch=recipe.dialogue.prefetch,
        flops_per_token=count(settings, dialogue.sequence_length).flops_per_token,
        evaluate=evaluate,
    )
    state = train(training, workdir, start.tokenizer_folder, stop, display)
    return Outcome(state, steps, settings, dialogue.sequence_length)
