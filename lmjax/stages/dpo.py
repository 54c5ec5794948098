"""Direct preference optimisation: a policy from rankings, without a reward model or sampling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import Batch
from lmjax.data.conversation_rows import RANKS
from lmjax.data.source_shares import source_names
from lmjax.evaluate.samples import samples_asked, write_samples
from lmjax.evaluate.validation import Sums, mean_of, values_of
from lmjax.model.flops import count
from lmjax.optim.train_state import TrainState
from lmjax.parallel.rows import compile_reading, shardings_of
from lmjax.settings.stages import DPO
from lmjax.stages.finetune import (
    check_lengths,
    check_sources,
    loader_of,
    mesh_for,
    open_dialogue,
    placed,
    planned_steps,
    say_shares,
    sums_over,
    with_dropout,
)
from lmjax.stages.initial import open_start
from lmjax.stages.steps import dpo_step
from lmjax.stages.train_stage import EvaluationLines, Outcome, Training, train
from lmjax.training.loop import Metrics, Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.step import make_eval_step
from lmjax.training.stop import StopRequest


def dpo(recipe: DPO, workdir: Path, stop: StopRequest, display: ProgressDisplay) -> Outcome:
    """Trains to the stage's last step, or until `stop` asks; the same call resumes. What is returned is saved."""
    check_sources(recipe)
    start = open_start(recipe.start, workdir)
    recipe = dataclasses.replace(recipe, model=with_dropout(start.settings, 0.0))
    assert recipe.model is not None
    dialogue, settings = recipe.dialogue, recipe.model
    check_lengths(recipe, settings)
    mesh = mesh_for(recipe, settings)
    rows, _ = open_dialogue(dialogue.train, dialogue, start.tokenizer, "ranking", workdir, display)
    held_out, _ = open_dialogue(dialogue.validation, dialogue, start.tokenizer, "ranking", workdir, display)
    steps = planned_steps(recipe, rows, dialogue.batch_size)

    step = dpo_step(recipe, settings, mesh, steps=steps, entries=start.tokenizer.vocab_size)
    model, optimizer, abstract = step.model, step.optimizer, step.abstract
    reference = start.language_model(step.frozen[0])

    def read(params: Any, reference: Any, batch: Batch) -> Metrics:
        return make_eval_step(step.loss_of(reference))(params, batch)

    reading = compile_reading(read, mesh, abstract.params, reference)

    most, names = recipe.evaluation.batches, source_names(dialogue.validation)
    prompts = samples_asked(recipe.evaluation, dialogue.template, start.tokenizer, settings.context)

    def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
        def beside(params: Any, batch: Batch) -> Sums:
            return reading(params, reference, batch)

        sums = sums_over(beside, state.params, held_out, dialogue, mesh, most, stop)
        write_samples(model, state.params, start.tokenizer, recipe.evaluation, prompts, lines, done, stop)
        return values_of(names, sums, _summary) if held_out else {}

    def fresh() -> TrainState:
        return jax.jit(lambda params: TrainState.create(params, optimizer), out_shardings=shardings_of(abstract))(
            jax.tree.map(lambda x: x.copy(), reference)  # the step uses the state's memory again
        )

    loader = loader_of(rows, dialogue)
    say_shares(dialogue.train, loader, steps, display)
    tokens = dialogue.batch_size * dialogue.sequence_length * loader.batch_at(0)[RANKS].shape[1]
    training = Training(
        recipe=recipe,
        stage=recipe.name,
        steps=steps,
        mesh=mesh,
        abstract=abstract,
        fresh=fresh,
        step=lambda state, batch: step.compiled(state, reference, batch),
        batch_at=placed(loader.batch_at, mesh),
        tokens_in=lambda _: tokens,
        prefetch=recipe.dialogue.prefetch,
        flops_per_token=count(settings, dialogue.sequence_length).flops_per_token,
        evaluate=evaluate,
    )
    state = train(training, workdir, start.tokenizer_folder, stop, display)
    return Outcome(state, steps, settings, dialogue.sequence_length)


def _summary(sums: Sums) -> Values:
    return {VALIDATION_LOSS: mean_of(sums["loss"]), "validation_accuracy": mean_of(sums["accuracy"])}
