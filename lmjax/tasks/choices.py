"""One of several options follows a context: each option is a row with the context, and a softmax is over their scores.

Devlin et al. 2018, section 4.4; for a decoder Radford et al. 2018, section 3.3. A batch is [B, K, T].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from lmjax.data import labelled
from lmjax.data.batch import LABEL_WEIGHTS, LABELS, Batch, BatchSpec
from lmjax.data.frames import Cut
from lmjax.data.labelled_rows import choice_rows, require_labels
from lmjax.data.ragged_rows import RaggedRows, ragged_fields
from lmjax.errors import UserError, require
from lmjax.evaluate.classes import accuracy
from lmjax.fields import NonNegativeFloat, NonNegativeInt
from lmjax.model.heads import TaskModel
from lmjax.objective.labelled import choice_loss, option_scores
from lmjax.objective.weighted import LossFunction
from lmjax.settings import Finetune
from lmjax.tasks.labelled import LabelledTask, Predictions
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values

PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Choices(LabelledTask):
    """The right one of an example's options."""

    filled: ClassVar[tuple[str, ...]] = ("options",)
    example_type: ClassVar[type] = labelled.Choices
    metrics: ClassVar[tuple[str, ...] | None] = ("accuracy",)

    options: NonNegativeInt = 0  # K, the most options of an example; 0 takes those of the training data
    long: Cut = "head"  # what is kept of a context or an option that is too long: the longer one is cut
    language: NonNegativeFloat = 0.0  # lambda of L3 = L2 + lambda L1: a decoder learns the next tokens, too

    def check(self) -> None:
        require(not self.labels, "labels", self.labels, "none, as options have no names", "leave it out")

    def labels_of(self, examples: Sequence[labelled.Choices]) -> tuple[str, ...]:
        return ()

    def prepared(self) -> LabelledTask:
        if self.options:
            return self
        most = max(len(each.options) for source in self._read("train") for each in source.items)
        return dataclasses.replace(self, options=most)

    @property
    def inputs(self) -> str:
        return "options"

    def example(self, texts: Sequence[str], where: str) -> labelled.Choices:
        require(len(texts) >= 3, where, list(texts), "a context and two options or more", "give all of them")
        return labelled.Choices(texts[0], tuple(texts[1:]), None, where)

    def table(self, answer: dict[str, Any]) -> list[tuple[str, ...]]:
        ranked = sorted(enumerate(answer[PROBABILITIES]), key=lambda item: -item[1])
        return [("option", "probability"), *((f"{number}", f"{share:.1%}") for number, share in ranked)]

    def check_examples(self, examples: Sequence[labelled.Choices]) -> None:
        require_labels(examples)

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        dtypes = {LABELS: "int32", LABEL_WEIGHTS: "float32"}
        rows = resolved.of(Finetune).rows
        return ragged_fields(rows, dtypes, options=self.options, language=self.language > 0)

    def rows_of(self, examples: Sequence[labelled.Choices], resolved: ResolvedStage) -> RaggedRows:
        tokenizer, length = resolved.tokenizer, resolved.of(Finetune).rows.sequence_length
        assert tokenizer is not None
        for each in examples:
            if len(each.options) > self.options:
                own, expected = len(each.options), f"at most {self.options}, those of the training data"
                raise UserError(f"{each.where}: {own} options, expected {expected}; set task.options to {own}")
        found, table = choice_rows(examples, tokenizer, self.frame(resolved), length, self.long)
        options = np.pad(table, ((0, 0), (0, self.options - table.shape[1])), constant_values=-1)
        right = [each.label for each in examples]
        fields = {
            LABELS: np.array([number or 0 for number in right], np.int32),
            LABEL_WEIGHTS: np.array([number is not None for number in right], np.float32),
        }
        types, entries = resolved.model.positions.segment_types, resolved.entries if self.language else None
        return RaggedRows(found.texts, length, fields, options=options, types=types, entries=entries)

    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        return 1, "auto"

    def loss(self, model: TaskModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        if self.language:
            model.trunk.require_causal("task.language")
        return choice_loss(model, language=self.language, entries=resolved.entries)

    def predict(self, model: TaskModel, params: Any, batch: Batch) -> dict[str, Any]:
        scores_BK, _ = option_scores(model, params, batch)
        return {PROBABILITIES: jax.nn.softmax(scores_BK, axis=-1)}

    def answers(
        self, predictions: Predictions, rows: RaggedRows, examples: Sequence[labelled.Choices]
    ) -> list[dict[str, Any]]:
        found = []
        for each, own in zip(examples, predictions[PROBABILITIES], strict=True):
            real = own[: len(each.options)]
            found.append({"choice": int(real.argmax()), PROBABILITIES: real.tolist()})
        return found

    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[labelled.Choices]) -> Values:
        right = np.array([each.label for each in examples])
        return {"accuracy": accuracy(np.array([answer["choice"] for answer in answers]), right)}
