"""Span corruption on token shards: T5's task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import BatchSpec
from lmjax.data.packing import Rows
from lmjax.data.seq2seq_rows import seq2seq_fields
from lmjax.data.span_corruption import RowLengths, SpanRows, span_vocabulary
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.validation import Sums, mean_of
from lmjax.model.families import model_of
from lmjax.model.transformer import Transformer
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction
from lmjax.settings import PretrainSpans
from lmjax.tasks.masked_language import loss_options, row_stream
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Task, TaskRun
from lmjax.training.loop import Values


@dataclass(frozen=True)
class SpanCorruption(NextToken):
    """Writes the spans that are missing in the inputs."""

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        return seq2seq_fields(resolved.settings.loading.batch_size, self._lengths(resolved)[1:])

    def rows(self, resolved: ResolvedStage, shards: TokenShards, number: int, *, validation: bool = False) -> Rows:
        stage, tokenizer = resolved.of(PretrainSpans), resolved.tokenizer
        assert tokenizer is not None
        return SpanRows(
            shards,
            stage.spans,
            span_vocabulary(tokenizer),
            stage.data.sequence_length,
            row_stream(stage, number, validation),
            whole_documents=stage.data.packing == "first_fit",
            keep_rest=validation,
        )

    def model(self, resolved: ResolvedStage, platform: str) -> Any:
        model, lengths = model_of(resolved.model, resolved.settings.compute, platform), self._lengths(resolved)
        for length in lengths[1:]:
            model.implementation(length)  # raises here, not when the first step is traced
        return model

    def loss(self, model: Transformer, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return language_loss(model, **loss_options(resolved))

    def summary(self, sums: Sums) -> Values:
        """The loss per token of the targets, sentinels and end included, and the share of them that is right."""
        return {VALIDATION_LOSS: mean_of(sums["cross_entropy"]), "validation_accuracy": mean_of(sums["accuracy"])}

    def evaluation(self, run: TaskRun) -> Evaluate:
        return Task.evaluation(self, run)

    def _lengths(self, resolved: ResolvedStage) -> RowLengths:
        return RowLengths.of(resolved.settings.loading.sequence_length, resolved.of(PretrainSpans).spans)
