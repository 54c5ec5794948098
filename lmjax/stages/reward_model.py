"""The reward model: a scalar head on a language model, trained on rankings, whose demonstrations score 0 on average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import Batch
from lmjax.data.conversation_rows import RANKS
from lmjax.data.packing import Rows
from lmjax.data.source_shares import source_names
from lmjax.errors import require
from lmjax.evaluate.validation import Sums, mean_of, values_of
from lmjax.model.flops import count
from lmjax.model.heads import SCALAR, TRUNK, ScalarModel
from lmjax.objective.preferences import answer_scores, present_answers
from lmjax.objective.rankings import accuracy_by_size, calibration
from lmjax.objective.weighted import Weighted, added_up
from lmjax.optim.train_state import TrainState
from lmjax.parallel.rows import compile_reading, shardings_of
from lmjax.settings.stages import RewardModel
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
from lmjax.stages.steps import reward_step
from lmjax.stages.train_stage import EvaluationLines, Outcome, Training, train
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest

LABELERS_ACCURACY = "held_out_labelers_accuracy"


def reward(recipe: RewardModel, workdir: Path, stop: StopRequest, display: ProgressDisplay) -> Outcome:
    """Trains to the stage's last step, or until `stop` asks; the same call resumes. What is returned is saved.

    The bias is shifted in the state that the last step saves.
    """
    check_sources(recipe)
    start = open_start(recipe.start, workdir)
    recipe = dataclasses.replace(recipe, model=with_dropout(start.settings, 0.0))
    assert recipe.model is not None
    dialogue, settings = recipe.dialogue, recipe.model
    check_lengths(recipe, settings)
    mesh = mesh_for(recipe, settings)
    rows, _ = open_dialogue(dialogue.train, dialogue, start.tokenizer, "ranking", workdir, display)
    held_out, _ = open_dialogue(dialogue.validation, dialogue, start.tokenizer, "ranking", workdir, display)
    others, _ = open_dialogue(recipe.held_out_labelers, dialogue, start.tokenizer, "ranking", workdir, display)
    zero, _ = open_dialogue(recipe.demonstrations, dialogue, start.tokenizer, "answer", workdir, display)
    steps = planned_steps(recipe, rows, dialogue.batch_size)

    step = reward_step(recipe, settings, mesh, steps=steps)
    model, optimizer, abstract, loss_fn = step.model, step.optimizer, step.abstract, step.loss_of()
    most = max((each.batch(np.array([0]))[RANKS].shape[1] for each in (*held_out, *others)), default=0)
    reading = compile_reading(
        lambda params, batch: comparison(model, loss_fn, params, batch, most), mesh, abstract.params
    )
    scoring = compile_reading(lambda params, batch: _best_scores(model, params, batch), mesh, abstract.params)

    def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
        def over(rows: Sequence[Rows]) -> list[Sums]:
            return sums_over(reading, state.params, rows, dialogue, mesh, recipe.evaluation.batches, stop)

        values: Values = {}
        if held_out:
            sums = over(held_out)
            lines.write(done, {"calibration": calibration_table(added_up(sums))})
            values |= values_of(source_names(dialogue.validation), sums, lambda own: summary_of(own, most))
        if others:
            names = source_names(recipe.held_out_labelers)
            values |= values_of(names, over(others), lambda own: {LABELERS_ACCURACY: mean_of(own["accuracy"])})
        return values

    def fresh() -> TrainState:
        trunk = start.language_model(abstract.params[TRUNK])

        def create(trunk: Any) -> TrainState:
            return TrainState.create(model.on_trunk(trunk, jax.random.key(recipe.train.seed)), optimizer)

        return jax.jit(create, out_shardings=shardings_of(abstract))(trunk)

    def finish(state: TrainState) -> TrainState:
        sums = sums_over(scoring, state.params, zero or rows, dialogue, mesh, None, stop)
        mean = mean_of(added_up(sums)["score"])
        finite = "finite scores of the demonstrations"
        require(math.isfinite(mean), "the reward model's last step", mean, finite, "lower optimizer.learning_rate")
        scalar = state.params[SCALAR]
        shifted = scalar | {"bias": scalar["bias"] - jnp.float32(mean)}
        display.say(f"the demonstrations scored {mean:.4f} on average; the bias is shifted by that much")
        return dataclasses.replace(state, params=state.params | {SCALAR: shifted})

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
        step=step.compiled,
        batch_at=placed(loader.batch_at, mesh),
        tokens_in=lambda _: tokens,
        prefetch=recipe.dialogue.prefetch,
        flops_per_token=count(settings, dialogue.sequence_length).flops_per_token,
        evaluate=evaluate,
        finish=finish,
    )
    state = train(training, workdir, start.tokenizer_folder, stop, display)
    return Outcome(state, steps, settings, dialogue.sequence_length)


def comparison(model: ScalarModel, loss_fn: Any, params: Any, batch: Batch, most: int) -> dict[str, Weighted]:
    """The loss, the accuracy by K up to `most`, and the calibration of a batch of rankings."""
    loss, metrics = loss_fn(params, batch, None)
    scores_BK = answer_scores(model, params, batch)
    ranks_BK, present_BK = batch[RANKS], present_answers(batch)
    sizes = accuracy_by_size(scores_BK, ranks_BK, present_BK, most)
    confidence, right = calibration(scores_BK, ranks_BK, present_BK)
    by_size = {f"accuracy_of_{size}": pair for size, pair in sizes.items()}
    return {"loss": loss, "confidence": confidence, "right": right} | metrics | by_size


def summary_of(sums: dict[str, Weighted], most: int) -> Values:
    """The numbers of a validation set: loss, accuracy over all pairs and by K, and the calibration error.

    The calibration error is |confidence - share in the right order|, averaged over pairs in ten bins of confidence.
    """
    pairs = float(sums["accuracy"].weight)
    gap = np.abs(np.asarray(sums["confidence"].sum) - np.asarray(sums["right"].sum)).sum()
    values = {
        VALIDATION_LOSS: mean_of(sums["loss"]),
        "validation_accuracy": mean_of(sums["accuracy"]),
        "calibration_error": float(gap) / pairs if pairs else 0.0,
    }
    by_size = {f"accuracy_of_{size}": sums[f"accuracy_of_{size}"] for size in range(2, most + 1)}
    return values | {name: mean_of(pair) for name, pair in by_size.items() if pair.weight}


def calibration_table(sums: dict[str, Weighted]) -> list[list[float]]:
    """Mean confidence, share in the right order, and number of the pairs of each bin that has some."""
    bins = zip(*(np.asarray(x) for x in (sums["confidence"].sum, sums["right"].sum, sums["right"].weight)), strict=True)
    return [[float(sure / pairs), float(right / pairs), float(pairs)] for sure, right, pairs in bins if pairs]


def _best_scores(model: ScalarModel, params: Any, batch: Batch) -> dict[str, Weighted]:
    """The scores of the best-ranked answers, which stand for demonstrations."""
    best_BK = present_answers(batch) & (batch[RANKS] == 0)
    scores_BK = jnp.where(best_BK, answer_scores(model, params, batch), 0.0)
    return {"score": Weighted(scores_BK.sum(), best_BK.sum().astype(jnp.float32))}
