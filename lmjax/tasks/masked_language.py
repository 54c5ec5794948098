"""Masked language modelling on token shards, with and without the prediction of the next sentence: BERT's tasks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import (
    LABEL_WEIGHTS,
    LABELS,
    POSITIONS,
    PREDICTED,
    PREDICTED_TARGETS,
    PREDICTED_WEIGHTS,
    SEGMENTS,
    TOKENS,
    TYPES,
    Batch,
    BatchSpec,
    Field,
)
from lmjax.data.draws import Stream
from lmjax.data.frames import encoder_frame
from lmjax.data.masked_rows import FirstTokenRows, MaskedRows, mask_vocabulary
from lmjax.data.packing import Rows, pack
from lmjax.data.sentence_pairs import PairRows
from lmjax.data.sentences import sentence_marks
from lmjax.data.token_shards import TokenShards
from lmjax.evaluate.validation import Sums, mean_of
from lmjax.model.families import model_of
from lmjax.model.flops import TRAIN, forward_flops
from lmjax.model.heads import TaskModel
from lmjax.model.transformer import Transformer
from lmjax.objective.masked_language import masked_and_next_loss, masked_loss, weighed
from lmjax.objective.weighted import LossFunction
from lmjax.settings import PretrainMasked
from lmjax.tasks.cross_entropy import terms_of
from lmjax.tasks.pretraining import Pretraining, row_stream
from lmjax.tasks.program import Cost
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.loop import Values


@dataclass(frozen=True)
class MaskedLanguage(Pretraining):
    """Predicts hidden tokens of full rows: [CLS] and text (RoBERTa)."""

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        stage = resolved.of(PretrainMasked)
        rows, length = stage.data.batch_size, stage.data.sequence_length
        predicted = (rows, stage.masking.columns(length))
        return {
            **{name: Field((rows, length)) for name in (TOKENS, POSITIONS, SEGMENTS)},
            **{name: Field(predicted) for name in (PREDICTED, PREDICTED_TARGETS)},
            PREDICTED_WEIGHTS: Field(predicted, "float32"),
        }

    def rows(self, resolved: ResolvedStage, shards: TokenShards, number: int, *, validation: bool = False) -> Rows:
        stage, tokenizer = resolved.of(PretrainMasked), resolved.tokenizer
        assert tokenizer is not None
        stream = row_stream(stage, number, validation)
        vocabulary = mask_vocabulary(tokenizer, stage.masking)
        texts = self._texts(stage, tokenizer, shards, stream, validation)
        return MaskedRows(texts, stage.masking, vocabulary, stage.data.sequence_length, stream)

    def _texts(
        self, stage: PretrainMasked, tokenizer: Tokenizer, shards: TokenShards, stream: Stream, validation: bool
    ) -> Rows:
        """The rows before tokens are hidden."""
        shorter = dataclasses.replace(stage.data, sequence_length=stage.data.sequence_length - 1)
        return FirstTokenRows(pack(shards, shorter, keep_rest=validation), encoder_frame(tokenizer).begin)

    def model(self, resolved: ResolvedStage, platform: str) -> Any:
        return self._encoder(resolved, platform)

    def _encoder(self, resolved: ResolvedStage, platform: str) -> Transformer:
        model = model_of(resolved.model, resolved.settings.compute, platform)
        model.implementation(resolved.of(PretrainMasked).data.sequence_length)  # raises here, not in the first step
        return model

    def loss(self, model: Any, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return masked_loss(model, **terms_of(resolved))

    def summary(self, sums: Sums) -> Values:
        """The loss per predicted token, and the share of them that is right."""
        values = {f"validation_{name}": mean_of(sums[name]) for name in ("masked_loss", "masked_accuracy")}
        return {VALIDATION_LOSS: values["validation_masked_loss"]} | values

    def cost(self, resolved: ResolvedStage) -> Cost:
        """Of which the vocabulary's head reads only the predicted tokens."""
        rows, length = self.spec(resolved)[TOKENS].shape
        of, tokens = forward_flops(resolved.model, length), rows * length
        predicted = rows * resolved.of(PretrainMasked).masking.columns(length)
        products = TRAIN * (tokens * of.body + predicted * of.head)
        return Cost((resolved.model,), rows, length, tokens, products, scores=TRAIN * tokens * of.scores)

    def flops_per_token(self, resolved: ResolvedStage) -> float:
        cost = self.cost(resolved)
        return cost.flops / cost.tokens


@dataclass(frozen=True)
class MaskedPairs(MaskedLanguage):
    """Predicts hidden tokens of two texts, and whether the second follows the first (BERT)."""

    trunk = ("trunk",)

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        spec = super().spec(resolved)
        rows = spec[TOKENS].shape[:1]
        return spec | {TYPES: spec[TOKENS], LABELS: Field(rows), LABEL_WEIGHTS: Field(rows, "float32")}

    def _texts(
        self, stage: PretrainMasked, tokenizer: Tokenizer, shards: TokenShards, stream: Stream, validation: bool
    ) -> Rows:
        frame, marks = encoder_frame(tokenizer), sentence_marks(tokenizer)
        ids, length = (frame.begin, frame.between), stage.data.sequence_length
        return PairRows(shards, stage.next_sentence, marks, ids, length, stream)

    def model(self, resolved: ResolvedStage, platform: str) -> TaskModel:
        return TaskModel(self._encoder(resolved, platform), 2)

    def loss(self, model: TaskModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return masked_and_next_loss(model, **terms_of(resolved))

    def weigh(self, batch: Batch) -> Batch:
        return weighed(batch)

    def summary(self, sums: Sums) -> Values:
        """Both losses, apart and as their sum, and the share of predictions that is right."""
        values = super().summary(sums)
        names = ("next_sentence_loss", "next_sentence_accuracy")
        values |= {f"validation_{name}": mean_of(sums[name]) for name in names}
        return values | {VALIDATION_LOSS: values[VALIDATION_LOSS] + values["validation_next_sentence_loss"]}
