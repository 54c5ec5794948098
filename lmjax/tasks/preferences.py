"""Preferences: a policy learns rankings directly, against the initial checkpoint as the reference (DPO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import TOKENS, BatchSpec
from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.validation import Sums, mean_of, values_of
from lmjax.model.flops import TRAIN
from lmjax.model.language_model import LanguageModel
from lmjax.objective.preferences import preference_loss
from lmjax.objective.weighted import LossFunction
from lmjax.optim.train_state import TrainState
from lmjax.settings import DPO
from lmjax.tasks.conversations import conversation_data
from lmjax.tasks.demonstrations import language_samples
from lmjax.tasks.program import Cost, language_cost
from lmjax.tasks.rankings import ranked_fields
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Values


@dataclass(frozen=True)
class Preferences(Task):
    """What DPO learns."""

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        return ranked_fields(resolved)

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        return conversation_data(resolved, "ranking", session.display)

    def frozen_models(self, model: LanguageModel) -> tuple[Any, ...]:
        return (model,)

    def initial(self, model: LanguageModel, language_model: Any, rng: jax.Array) -> Any:
        return jax.tree.map(lambda x: x.copy(), language_model)  # the step uses the state's memory again

    def loss(self, model: LanguageModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        stage = resolved.of(DPO)
        (reference,) = frozen
        beta, smoothing = stage.beta, stage.label_smoothing
        return preference_loss(model, reference, beta=beta, label_smoothing=smoothing, valid_vocab=resolved.vocabulary)

    def cost(self, resolved: ResolvedStage) -> Cost:
        B, K, T = self.spec(resolved)[TOKENS].shape
        return language_cost(resolved.model, B * K, T, TRAIN + 1)  # the reference reads forward alone

    def summary(self, sums: Sums) -> Values:
        return {VALIDATION_LOSS: mean_of(sums["loss"]), "validation_accuracy": mean_of(sums["accuracy"])}

    def evaluation(self, run: TaskRun) -> Evaluate:
        """Loss and accuracy, and a continuation of each prompt."""
        reading = run.compiled(self.read(run.program.model, run.resolved))
        samples, most = language_samples(run), run.stage.evaluation.batches

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            sums = run.sums_over(reading, state.params, run.data.validation, most)
            samples(state, done, lines)
            return values_of(run.data.names, sums, self.summary) if run.data.validation else {}

        return evaluate
