"""Supervised fine-tuning: loss on the assistant's tokens, with pretraining text mixed in where the recipe has some."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.loader import RowLoader
from lmjax.data.packing import Rows, pack
from lmjax.data.source_shares import mixture_weights, source_names
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.samples import samples_asked, write_samples
from lmjax.evaluate.validation import Sums, mean_of, values_of
from lmjax.model.flops import count
from lmjax.optim.train_state import TrainState
from lmjax.parallel.rows import compile_reading, shardings_of
from lmjax.settings.stages import SFT
from lmjax.stages.finetune import (
    check_lengths,
    check_sources,
    mesh_for,
    open_dialogue,
    open_mix,
    placed,
    planned_steps,
    say_mix,
    say_shares,
    sums_over,
    with_dropout,
)
from lmjax.stages.initial import open_start
from lmjax.stages.sft_reward import Judge
from lmjax.stages.steps import sft_step
from lmjax.stages.train_stage import EvaluationLines, Outcome, Training, train
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay
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
    texts = open_mix(recipe.mix, start, workdir, display.say)
    loader = _loader(recipe, rows, texts)
    say_shares(dialogue.train, loader, steps, display)
    say_mix(recipe.mix, texts, loader, steps, display)

    step = sft_step(recipe, settings, mesh, steps=steps, entries=start.tokenizer.vocab_size)
    model, optimizer, abstract = step.model, step.optimizer, step.abstract
    reading = compile_reading(make_eval_step(step.loss_of()), mesh, abstract.params)

    judge = Judge(recipe, start, model, mesh, workdir, display, stop) if recipe.judge else None
    most, names = recipe.evaluation.batches, source_names(dialogue.validation)
    prompts = samples_asked(recipe.evaluation, dialogue.template, start.tokenizer, settings.context)

    def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
        sums = sums_over(reading, state.params, held_out, dialogue, mesh, most, stop)
        write_samples(model, state.params, start.tokenizer, recipe.evaluation, prompts, lines, done, stop)
        if not held_out:
            return {}
        values = values_of(names, sums, _summary)
        return values | ({} if judge is None else judge.values(names, state.params))

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
        batch_at=placed(loader.batch_at, mesh),
        tokens_in=lambda _: tokens,
        prefetch=recipe.dialogue.prefetch,
        flops_per_token=count(settings, dialogue.sequence_length).flops_per_token,
        evaluate=evaluate,
    )
    state = train(training, workdir, start.tokenizer_folder, stop, display)
    return Outcome(state, steps, settings, dialogue.sequence_length)


def _summary(sums: Sums) -> Values:
    return {VALIDATION_LOSS: mean_of(sums["cross_entropy"]), "validation_accuracy": mean_of(sums["accuracy"])}


def _loader(recipe: SFT, rows: Sequence[Rows], texts: Sequence[TokenShards]) -> RowLoader:
    """The demonstrations and, behind them, the text that is mixed in; mix_share says how many of all rows it has."""
    dialogue = recipe.dialogue
    weights = mixture_weights([source.weight for source in dialogue.train], [len(each) for each in rows])
    packed = [pack(shards, dialogue.loading, keep_rest=False) for shards in texts]
    own = mixture_weights([source.weight for source in recipe.mix], [len(each) for each in packed])
    share = recipe.mix_share / (1.0 - recipe.mix_share) * sum(weights) / (sum(own) or 1.0)
    return RowLoader([*rows, *packed], [*weights, *(weight * share for weight in own)], dialogue.loading)
