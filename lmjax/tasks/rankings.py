"""Rankings: a scalar head on a language model learns the order of answers, and demonstrations score 0 on average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import Batch, BatchSpec, Field, language_fields
from lmjax.data.conversation_rows import RANKS
from lmjax.data.packing import Rows
from lmjax.data.source_shares import source_names
from lmjax.errors import require
from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.validation import Sums, mean_of, values_of
from lmjax.model.families import model_of
from lmjax.model.heads import SCALAR, TRUNK, ScalarModel
from lmjax.objective.options import present_options
from lmjax.objective.preferences import answer_scores, reward_loss
from lmjax.objective.rankings import accuracy_by_size, calibration
from lmjax.objective.weighted import LossFunction, Weighted, added_up
from lmjax.optim.train_state import TrainState
from lmjax.settings import DialogueStage, RewardModel
from lmjax.tasks.conversations import conversation_data, open_conversations
from lmjax.tasks.program import Cost, language_cost
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Values

LABELERS_ACCURACY = "held_out_labelers_accuracy"
LABELERS, ZERO = "held_out_labelers", "demonstrations"  # further rows of the data


def ranked_fields(resolved: ResolvedStage) -> BatchSpec:
    """Rows of `dialogue.most_answers` answers to each prompt, [B, K, T], and their ranks, [B, K]."""
    dialogue = resolved.of(DialogueStage).dialogue
    shape = (dialogue.batch_size, dialogue.most_answers, dialogue.sequence_length)
    return language_fields(shape) | {RANKS: Field(shape[:2])}


@dataclasses.dataclass(frozen=True)
class Rankings(Task):
    """What a reward model learns."""

    trunk = (TRUNK,)

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        return ranked_fields(resolved)

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        stage, data = resolved.of(RewardModel), conversation_data(resolved, "ranking", session.display)
        others, _ = open_conversations(stage.held_out_labelers, "ranking", resolved, session.display)
        zero, _ = open_conversations(stage.demonstrations, "answer", resolved, session.display)
        return dataclasses.replace(data, more={LABELERS: others, ZERO: zero or data.train})

    def model(self, resolved: ResolvedStage, platform: str) -> ScalarModel:
        reads = resolved.of(RewardModel).reads
        return ScalarModel(model_of(resolved.model, resolved.settings.compute, platform), reads)

    def initial(self, model: ScalarModel, language_model: Any, rng: jax.Array) -> Any:
        return model.on_trunk(language_model, rng)

    def loss(self, model: ScalarModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        stage = resolved.of(RewardModel)
        return reward_loss(model, label_smoothing=stage.label_smoothing, margin=stage.margin, centring=stage.centring)

    def cost(self, resolved: ResolvedStage) -> Cost:
        B, K, T = self.spec(resolved)["tokens"].shape
        return language_cost(resolved.model, B * K, T, head=False)

    def evaluation(self, run: TaskRun) -> Evaluate:
        """Loss, accuracy and calibration, and the accuracy on rankings of labelers that training has none of."""
        stage, model, validation, others = (
            run.resolved.of(RewardModel),
            run.program.model,
            run.data.validation,
            run.data.more[LABELERS],
        )
        loss_fn = self.loss(model, run.resolved)
        most = max((each.batch(np.array([0]))[RANKS].shape[1] for each in (*validation, *others)), default=0)
        reading = run.compiled(lambda params, batch: comparison(model, loss_fn, params, batch, most))

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            def over(rows: Sequence[Rows]) -> list[Sums]:
                return run.sums_over(reading, state.params, rows, stage.evaluation.batches)

            values: Values = {}
            if validation:
                sums = over(validation)
                lines.write(done, {"calibration": calibration_table(added_up(sums))})
                values |= values_of(run.data.names, sums, lambda own: summary_of(own, most))
            if others:
                names = source_names(stage.held_out_labelers)
                values |= values_of(names, over(others), lambda own: {LABELERS_ACCURACY: mean_of(own["accuracy"])})
            return values

        return evaluate

    def finish(self, run: TaskRun) -> Callable[[TrainState], TrainState]:
        """Shifts the bias so that the demonstrations score 0 on average."""
        model = run.program.model
        scoring = run.compiled(lambda params, batch: _best_scores(model, params, batch))

        def finish(state: TrainState) -> TrainState:
            sums = run.sums_over(scoring, state.params, run.data.more[ZERO], None)
            mean = mean_of(added_up(sums)["score"])
            finite = "finite scores of the demonstrations"
            require(math.isfinite(mean), "the reward model's last step", mean, finite, "lower optimizer.learning_rate")
            scalar = state.params[SCALAR]
            shifted = scalar | {"bias": scalar["bias"] - jnp.float32(mean)}
            run.session.display.say(f"the demonstrations score {mean:.4f} on average; the bias is shifted by that much")
            return dataclasses.replace(state, params=state.params | {SCALAR: shifted})

        return finish


def comparison(model: ScalarModel, loss_fn: Any, params: Any, batch: Batch, most: int) -> dict[str, Weighted]:
    """The loss, the accuracy by K up to `most`, and the calibration of a batch of rankings."""
    loss, metrics = loss_fn(params, batch, None)
    scores_BK = answer_scores(model, params, batch)
    ranks_BK, present_BK = batch[RANKS], present_options(batch)
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
    best_BK = present_options(batch) & (batch[RANKS] == 0)
    scores_BK = jnp.where(best_BK, answer_scores(model, params, batch), 0.0)
    return {"score": Weighted(scores_BK.sum(), best_BK.sum().astype(jnp.float32))}
