"""One or two texts have a class or a score: sentiment, acceptability, entailment, paraphrase, similarity.

An encoder reads [CLS] a [SEP] b [SEP] (Devlin et al. 2018, section 4.1), a decoder Start a Delimiter b Extract, whose
last token feeds the head (Radford et al. 2018, section 3.3).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, Batch, BatchSpec
from lmjax.data.labelled import Labelled
from lmjax.data.labelled_rows import (
    Long,
    class_numbers,
    classes_of,
    label_of,
    require_labels,
    require_pairs,
    scores_of,
    text_rows,
)
from lmjax.data.ragged_rows import RaggedRows, ragged_fields
from lmjax.errors import nearest, require
from lmjax.evaluate.classes import chosen, class_measures, merged, score_measures
from lmjax.fields import NonNegativeFloat, PositiveInt
from lmjax.model.heads import TaskModel
from lmjax.objective.labelled import text_loss, text_outputs
from lmjax.objective.weighted import LossFunction
from lmjax.settings import Finetune
from lmjax.tasks.labelled import LabelledTask, Predictions
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values

PROBABILITIES, SCORES = "probabilities", "scores"


@dataclass(frozen=True)
class Sentences(LabelledTask):
    """Classes, or scores, of one or two texts."""

    example_type: ClassVar[type] = Labelled
    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy", "f1", "matthews", "pearson", "spearman")

    filled: ClassVar[tuple[str, ...]] = ("labels", "class_weights")

    scores: bool = False  # labels are numbers, learned by their squared error
    class_weights: tuple[tuple[str, float], ...] = ()  # factors of the loss of examples by their class; 1 for others
    balanced: bool = False  # class_weights are N / (classes x examples of the class), of the training data
    long: Long = "head"  # what is kept of a text that is too long: a part of it, or all, in windows that overlap
    stride: PositiveInt = 128  # tokens between the begins of two windows
    merge: Literal["mean", "vote"] = "mean"  # how the windows of an example are merged
    both_orders: bool = False  # two texts are read in both orders, and what the head reads is added (similarity)
    language: NonNegativeFloat = 0.0  # lambda of L3 = L2 + lambda L1: a decoder learns the next tokens, too

    def check(self) -> None:
        for name in ("labels", "class_weights", "balanced"):
            value = getattr(self, name)
            require(not (self.scores and value), name, value, "its default, as scores have no classes", "leave it out")
        one_row = not (self.both_orders and self.long == "windows")
        require(one_row, "long", self.long, "a part of a text where both_orders are read", "cut it, or read one order")
        for label, weight in self.class_weights:
            known = not self.labels or label in self.labels
            require(known, "class_weights", label, "names of classes", nearest(label, self.labels))
            require(weight >= 0, "class_weights", weight, "factors of 0 or more", "use 1 for no change")

    def labels_of(self, examples: Sequence[Labelled]) -> tuple[str, ...]:
        return () if self.scores else classes_of(examples)

    def prepared(self) -> LabelledTask:
        if self.scores or (self.labels and not (self.balanced and not self.class_weights)):
            return self
        counts = Counter(label_of(each) for source in self._read("train") for each in source.items)
        labels = self.labels or super().prepared().labels
        factors = tuple((label, counts.total() / (len(labels) * counts[label])) for label in labels if counts[label])
        return dataclasses.replace(self, labels=labels, class_weights=factors if self.balanced else self.class_weights)

    def check_examples(self, examples: Sequence[Labelled]) -> None:
        require_labels(examples)

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        dtypes = {LABELS: "float32" if self.scores else "int32", LABEL_WEIGHTS: "float32"}
        options = 2 if self.both_orders else None
        return ragged_fields(resolved.of(Finetune).rows, dtypes, options=options, language=self.language > 0)

    def rows_of(self, examples: Sequence[Labelled], resolved: ResolvedStage) -> RaggedRows:
        tokenizer, length = resolved.tokenizer, resolved.of(Finetune).rows.sequence_length
        assert tokenizer is not None
        frame, options, swapped = self.frame(resolved), None, []
        if self.both_orders:
            require_pairs(examples)
            swapped = [dataclasses.replace(each, texts=each.texts[::-1]) for each in examples]
            options = np.arange(2 * len(examples)).reshape(2, -1).T
        found = text_rows([*examples, *swapped], tokenizer, frame, length, self.long, self.stride)
        of = found.examples if options is None else np.arange(len(examples))
        return RaggedRows(
            found.texts,
            length,
            {name: array[of] for name, array in self._fields(examples).items()},
            options=options,
            types=resolved.model.positions.segment_types,
            examples=of,
            entries=resolved.entries if self.language else None,
        )

    def _fields(self, examples: Sequence[Labelled]) -> dict[str, np.ndarray]:
        """The labels of examples and their weights; those without a label weigh nothing."""
        real = np.array([each.label is not None for each in examples], np.float32)
        labels = np.zeros(len(examples), np.float32 if self.scores else np.int32)
        labelled = [each for each in examples if each.label is not None]
        labels[real > 0] = scores_of(labelled) if self.scores else class_numbers(labelled, self.labels)
        return {LABELS: labels, LABEL_WEIGHTS: real}

    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        return (1 if self.scores else len(self.labels)), "auto"

    def loss(self, model: TaskModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        if self.language:
            model.trunk.require_causal("task.language")
        weights = dict(self.class_weights)
        factors = tuple(weights.get(label, 1.0) for label in self.labels) if weights else ()
        return text_loss(
            model, scores=self.scores, class_weights=factors, language=self.language, entries=resolved.entries
        )

    def predict(self, model: TaskModel, params: Any, batch: Batch) -> dict[str, Any]:
        numbers_BC, _ = text_outputs(model, params, batch)
        return {SCORES: numbers_BC} if self.scores else {PROBABILITIES: jax.nn.softmax(numbers_BC, axis=-1)}

    def answers(self, predictions: Predictions, rows: RaggedRows, examples: Sequence[Labelled]) -> list[dict[str, Any]]:
        count = len(examples)
        if self.scores:
            return [{"score": float(score)} for score in merged(predictions[SCORES], rows.examples, count)[:, 0]]
        shares = merged(predictions[PROBABILITIES], rows.examples, count, self.merge)
        best = chosen(predictions[PROBABILITIES], rows.examples, count, self.merge)
        return [
            {"label": self.labels[number], PROBABILITIES: dict(zip(self.labels, map(float, own), strict=True))}
            for number, own in zip(best, shares, strict=True)
        ]

    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[Labelled]) -> Values:
        if self.scores:
            return score_measures(np.array([answer["score"] for answer in answers]), scores_of(examples))
        numbers = {label: number for number, label in enumerate(self.labels)}
        predicted = np.array([numbers[answer["label"]] for answer in answers])
        return class_measures(predicted, class_numbers(examples, self.labels), len(self.labels))
