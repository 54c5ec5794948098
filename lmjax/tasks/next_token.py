"""Next-token prediction on token shards: pretraining's task."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import TARGETS, WEIGHTS, Batch, BatchSpec, language_fields
from lmjax.data.loader import ValidationBatches
from lmjax.data.packing import Rows, pack
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.samples import EvaluationLines, write_samples
from lmjax.evaluate.validation import Sums, perplexity_of, values_of
from lmjax.generate.decode import check_prompts
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction, Weighted
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import ROWS_AND_TIME
from lmjax.settings import Pretrain
from lmjax.tasks.cross_entropy import terms_of
from lmjax.tasks.pretraining import Pretraining
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, TaskRun
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay

TEXT_BYTES = "text_bytes"  # among the sums of an evaluation


@dataclass(frozen=True)
class NextToken(Pretraining):
    """Predicts each next token of the shards."""

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        data = resolved.settings.loading
        return language_fields((data.batch_size, data.sequence_length), ROWS_AND_TIME)

    def rows(self, resolved: ResolvedStage, shards: TokenShards, number: int, *, validation: bool = False) -> Rows:
        return pack(shards, resolved.of(Pretrain).data, keep_rest=validation)

    def model(self, resolved: ResolvedStage, platform: str) -> LanguageModel:
        data = resolved.of(Pretrain).data
        segmented = data.isolate_documents or data.packing == "first_fit"
        model = LanguageModel(resolved.model, resolved.settings.compute, platform, segmented)
        model.implementation(data.sequence_length)  # raises here, not when the first step is traced
        return model

    def loss(self, model: LanguageModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return language_loss(model, **terms_of(resolved))

    def summary(self, sums: Sums) -> Values:
        """The loss per token, its exponential and, where bytes were counted, bits per byte."""
        loss = float(sums["cross_entropy"].mean())
        values = {VALIDATION_LOSS: loss, "validation_perplexity": perplexity_of(loss)}
        if TEXT_BYTES in sums:
            count = int(sums[TEXT_BYTES].sum)
            nats = float(sums["cross_entropy"].sum)
            values |= {"bits_per_byte": nats / count / math.log(2)} if count else {}
        return values

    def evaluation(self, run: TaskRun) -> Evaluate:
        """Loss, perplexity and bits per byte on the validation set, and a continuation of each prompt."""
        settings, tokenizer = run.stage.evaluation, run.resolved.tokenizer
        assert tokenizer is not None
        reading = run.compiled(self.read(run.program.model, run.resolved))
        prompts = list(settings.prompts) if jax.process_count() == 1 else []
        if settings.prompts and not prompts:
            run.session.display.say(
                "evaluation.prompts: not continued in a run of several processes; use lmjax generate"
            )
        check_prompts("evaluation.prompts", prompts, tokenizer, run.resolved.model.context)
        lengths = _byte_lengths(tokenizer, run.session.display)
        counted = functools.cache(functools.partial(_counted, run.batches(run.data.validation), lengths))

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            sums = run.sums_over(reading, state.params, run.data.validation, settings.batches, counted)
            stop = run.session.stop
            write_samples(run.program.model, state.params, tokenizer, settings, prompts, lines, done, stop)
            return values_of(run.data.names, sums, self.summary)

        return evaluate


def _counted(batches: ValidationBatches, lengths: np.ndarray | None, number: int) -> Sums:
    return {} if lengths is None else {TEXT_BYTES: _text_bytes(batches.batch_at(number), lengths)}


def _byte_lengths(tokenizer: Tokenizer, display: ProgressDisplay) -> np.ndarray | None:
    """The bytes that each token stands for; None, said aloud, where bits per byte would not be those of the text."""
    lengths = tokenizer.byte_lengths() if tokenizer.lossless else None
    if lengths is None:
        lost = "it loses text" if not tokenizer.lossless else "its tokens do not tell how many bytes they stand for"
        display.say(f"no bits per byte with this {tokenizer.kind} tokenizer: {lost}; the loss is per token alone")
    return lengths


def _text_bytes(batch: Batch, lengths: np.ndarray) -> Weighted:
    """The bytes of a batch's targets, those of no weight left out: a whole number, on the host."""
    counted = batch[WEIGHTS] > 0
    return Weighted(lengths[batch[TARGETS][counted]].sum(), counted.sum())
