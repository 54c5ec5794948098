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
from lmjax.data.loader import RowLoader, ValidationBatches, check_one_tokenizer
from lmjax.data.packing import Rows, pack
from lmjax.data.ramp import BatchRamp
from lmjax.data.source_shares import lines_of, source_names
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.samples import EvaluationLines, write_samples
from lmjax.evaluate.validation import Sums, perplexity_of, values_of
from lmjax.generate.decode import check_prompts
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction, Weighted
from lmjax.optim.schedules import Schedule, token_clock
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import ROWS_AND_TIME
from lmjax.settings import Pretrain
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay

TEXT_BYTES = "text_bytes"  # among the sums of an evaluation


@dataclass(frozen=True)
class NextToken(Task):
    """Predicts each next token of the shards; a plan, which compiles from shapes, has none."""

    train: tuple[TokenShards, ...] = ()
    validation: tuple[TokenShards, ...] = ()

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        data = resolved.settings.loading
        return language_fields((data.batch_size, data.sequence_length), ROWS_AND_TIME)

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        data = resolved.of(Pretrain).data
        check_one_tokenizer(self.train)

        def shares(loader: RowLoader, steps: int) -> list[str]:
            return lines_of(data.train, [shards.tokens for shards in self.train], loader.epochs_at(steps), "tokens")

        return TaskData(
            train=[self.rows(resolved, shards, number) for number, shards in enumerate(self.train)],
            weights=[source.weight for source in data.train],
            validation=[
                self.rows(resolved, shards, number, validation=True) for number, shards in enumerate(self.validation)
            ],
            names=source_names(data.validation),
            shares=shares,
        )

    def rows(self, resolved: ResolvedStage, shards: TokenShards, number: int, *, validation: bool = False) -> Rows:
        """The rows of the training or validation source with this number."""
        return pack(shards, resolved.of(Pretrain).data, keep_rest=validation)

    def model(self, resolved: ResolvedStage, platform: str) -> Any:
        data = resolved.of(Pretrain).data
        segmented = data.isolate_documents or data.packing == "first_fit"
        model = LanguageModel(resolved.model, resolved.settings.compute, platform, segmented)
        model.implementation(data.sequence_length)  # raises here, not when the first step is traced
        return model

    def loss(self, model: Any, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        train = resolved.of(Pretrain).train
        return language_loss(
            model, z_loss=train.z_loss, label_smoothing=train.label_smoothing, valid_vocab=resolved.entries
        )

    def clock(self, resolved: ResolvedStage) -> Schedule:
        ramp = BatchRamp(resolved.of(Pretrain).data)
        return token_clock(ramp.table.first_steps, ramp.step_tokens, ramp.table.tokens_before, row=1)

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

    def progress(self, loader: RowLoader, done: int) -> Values:
        epochs = loader.epochs_at(done)
        return {"epochs": epochs[0]} if len(epochs) == 1 else {f"epochs/{i}": share for i, share in enumerate(epochs)}


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
