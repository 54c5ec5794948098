"""Tags of words, such as those of named entities: the first token of a word has the word's label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, POSITIONS, SEGMENTS, TOKENS, TYPES, Batch, BatchSpec, Field
from lmjax.data.labelled import BadExampleError, TaggedWords
from lmjax.data.labelled_sets.tagged_words import words_of
from lmjax.data.tag_schemes import OUTSIDE
from lmjax.data.tagged_rows import TaggedRows, tagged_rows
from lmjax.errors import require
from lmjax.evaluate.entities import entity_metrics, tag_record
from lmjax.fields import PositiveInt
from lmjax.model.heads import TaskModel
from lmjax.objective.classification import class_loss
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary
from lmjax.tasks.labelled import LabelledTask, Predictions
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values


@dataclass(frozen=True)
class Tags(LabelledTask):
    """Tags of words (Devlin et al. 2018, section 5.3), without any dependence between the tags of a sentence.

    A sentence that is longer than a row is read in windows; a word's tag is that of the window that sees most around
    its first token.
    """

    example_type: ClassVar[type] = TaggedWords
    metrics: ClassVar[tuple[str, ...] | None] = (
        *("accuracy", "precision", "recall", "f1", "strict_precision", "strict_recall", "strict_f1"),
    )

    stride: PositiveInt = 64  # tokens from one window of a sentence to the next
    words: Literal["blanks", "characters"] = "blanks"  # what stands between words; each character is a word in Chinese

    @property
    def between(self) -> str:
        return " " if self.words == "blanks" else ""

    def example(self, texts: Sequence[str], where: str) -> TaggedWords:
        require(len(texts) == 1 and bool(texts[0].strip()), where, list(texts), "one text with words", "give one")
        return TaggedWords(words_of(texts[0], self.words == "characters"), None, where, texts[0])

    def unlabelled(self, example: TaggedWords) -> TaggedWords:
        return replace(example, tags=None)

    def table(self, answer: dict[str, Any]) -> list[tuple[str, ...]]:
        words = zip(answer["words"], answer["tags"], answer["probabilities"], strict=True)
        return [("word", "tag", "probability"), *((word, tag, f"{share:.1%}") for word, tag, share in words)]

    @property
    def inputs(self) -> str:
        return "tagged" if self.words == "blanks" else "characters"

    def check_examples(self, examples: Sequence[TaggedWords]) -> None:
        for each in examples:
            if each.tags is None:
                raise BadExampleError(each.where, "expected a tag for each word", "found none")

    def labels_of(self, examples: Sequence[TaggedWords]) -> tuple[str, ...]:
        self.check_examples(examples)
        tags = {tag for each in examples for tag in each.tags or ()}
        return tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag)))

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        shape = resolved.settings.loading.batch_size, resolved.settings.loading.sequence_length
        tokens = {name: Field(shape) for name in (TOKENS, TYPES, POSITIONS, SEGMENTS, LABELS)}
        return tokens | {LABEL_WEIGHTS: Field(shape, "float32")}

    def rows_of(self, examples: Sequence[TaggedWords], resolved: ResolvedStage) -> TaggedRows:
        assert resolved.tokenizer is not None
        length = resolved.settings.loading.sequence_length
        return tagged_rows(
            examples, resolved.tokenizer, self.frame(resolved), self.labels, length, self.stride, self.between
        )

    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        return len(self.labels), "tokens"

    def loss(self, model: TaskModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
            outputs_BTC, aux = model.outputs_of(params, batch, rng)
            outputs_NC = outputs_BTC.reshape(-1, outputs_BTC.shape[-1])
            loss, metrics = class_loss(outputs_NC, batch[LABELS].reshape(-1), batch[LABEL_WEIGHTS].reshape(-1))
            return with_auxiliary(loss, metrics, aux, batch[LABEL_WEIGHTS])

        return loss_fn

    def predict(self, model: TaskModel, params: Any, batch: Batch) -> dict[str, Any]:
        outputs_BTC, _ = model.outputs_of(params, batch)
        return {"labels": outputs_BTC.argmax(axis=-1), "probabilities": jnp.max(jax.nn.softmax(outputs_BTC), axis=-1)}

    def answers(
        self, predictions: Predictions, rows: TaggedRows, examples: Sequence[TaggedWords]
    ) -> list[dict[str, Any]]:
        labels, shares = (rows.of_words(predictions[name]) for name in ("labels", "probabilities"))
        none = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        out = []
        for each, label, share in zip(examples, labels, shares, strict=True):
            numbers = range(len(each.words))  # one without a token, of which nothing is predicted, is outside
            tags = [self.labels[int(label.get(number, none))] for number in numbers]
            probabilities = [float(share.get(number, 1.0)) for number in numbers]
            out.append(tag_record(each.words, tags, probabilities, each.text, self.between))
        return out

    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[TaggedWords]) -> Values:
        return entity_metrics([each.tags or () for each in examples], [answer["tags"] for answer in answers])
