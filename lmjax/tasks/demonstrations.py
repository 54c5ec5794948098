"""Demonstrations: loss on the assistant's tokens, with pretraining text mixed in where the recipe has some."""

from __future__ import annotations

import dataclasses
from typing import Any

from lmjax.data.batch import BatchSpec, language_fields
from lmjax.data.loader import RowLoader
from lmjax.data.packing import pack
from lmjax.data.source_shares import mixture_weights
from lmjax.evaluate.samples import EvaluationLines, samples_asked, write_samples
from lmjax.evaluate.validation import Sums, values_of
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction
from lmjax.optim.train_state import TrainState
from lmjax.settings import SFT
from lmjax.tasks.conversations import conversation_data, mix_shares, open_mix
from lmjax.tasks.cross_entropy import loss_and_accuracy, terms_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.sampled_rewards import SampledRewards
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Values


@dataclasses.dataclass(frozen=True)
class Demonstrations(Task):
    """What SFT learns."""

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        loading = resolved.settings.loading
        return language_fields((loading.batch_size, loading.sequence_length))

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        data = conversation_data(resolved, "demonstration", session.display)
        stage = resolved.of(SFT)
        if not stage.mix:
            return data
        texts = open_mix(resolved, session)
        packed = [pack(shards, stage.loading, keep_rest=False) for shards in texts]
        weights = mixture_weights(data.weights, [len(rows) for rows in data.train])
        own = mixture_weights([source.weight for source in stage.mix], [len(rows) for rows in packed])
        share = stage.mix_share / (1.0 - stage.mix_share) * sum(weights) / (sum(own) or 1.0)

        def shares(loader: RowLoader, steps: int) -> list[str]:
            return [*data.shares(loader, steps), *mix_shares(stage.mix, texts, loader, steps)]

        return dataclasses.replace(
            data,
            train=[*data.train, *packed],
            weights=[*weights, *(weight * share for weight in own)],
            mixed=stage.mix_share,
            shares=shares,
        )

    def loss(self, model: LanguageModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return language_loss(model, **terms_of(resolved))

    def summary(self, sums: Sums) -> Values:
        return loss_and_accuracy(sums)

    def evaluation(self, run: TaskRun) -> Evaluate:
        """Loss and accuracy, a continuation of each prompt, and a reward model's score of sampled answers."""
        stage, resolved, validation = run.resolved.of(SFT), run.resolved, run.data.validation
        reading = run.compiled(self.read(run.program.model, resolved))
        rewards = SampledRewards(run) if resolved.scorer is not None else None
        samples = language_samples(run)

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            sums = run.sums_over(reading, state.params, validation, stage.evaluation.batches)
            samples(state, done, lines)
            if not validation:
                return {}
            values = values_of(run.data.names, sums, self.summary)
            return values | ({} if rewards is None else rewards.values(run.data.names, state.params))

        return evaluate


def language_samples(run: TaskRun) -> Any:
    """(state, done, lines) -> None: records a continuation of each prompt of the evaluation."""
    stage, resolved = run.stage, run.resolved
    assert resolved.tokenizer is not None and stage.template is not None
    tokenizer, settings = resolved.tokenizer, stage.evaluation
    prompts = samples_asked(settings, stage.template, tokenizer, resolved.model.context)

    def samples(state: TrainState, done: int, lines: EvaluationLines) -> None:
        write_samples(run.program.model, state.params, tokenizer, settings, prompts, lines, done, run.session.stop)

    return samples
