"""Span corruption on token shards: T5's task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmjax.data.batch import BatchSpec
from lmjax.data.packing import Rows
from lmjax.data.seq2seq_rows import seq2seq_fields
from lmjax.data.span_corruption import RowLengths, SpanRows, span_vocabulary
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.validation import Sums
from lmjax.model.families import model_of
from lmjax.model.transformer import Transformer
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction
from lmjax.settings import PretrainSpans
from lmjax.tasks.cross_entropy import loss_and_accuracy, terms_of
from lmjax.tasks.pretraining import Pretraining, row_stream
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values


@dataclass(frozen=True)
class SpanCorruption(Pretraining):
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
        return language_loss(model, **terms_of(resolved))

    def summary(self, sums: Sums) -> Values:
        """Tokens of the targets are learned, sentinels and end included."""
        return loss_and_accuracy(sums)

    def _lengths(self, resolved: ResolvedStage) -> RowLengths:
        return RowLengths.of(resolved.settings.loading.sequence_length, resolved.of(PretrainSpans).spans)
