"""Extractive question answering: two scores of each token say where in a passage the answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax

from lmjax.data.batch import (
    LABEL_WEIGHTS,
    POSITIONS,
    SEGMENTS,
    SPANS,
    TOKENS,
    TYPES,
    Batch,
    BatchSpec,
    Field,
)
from lmjax.data.labelled import BadExampleError, Question
from lmjax.data.question_windows import QuestionRows, question_rows, shared_passages
from lmjax.errors import require
from lmjax.evaluate.answer_spans import extracted_answers
from lmjax.evaluate.squad import question_metrics
from lmjax.fields import PositiveInt
from lmjax.model.heads import TaskModel
from lmjax.objective.spans import masked_scores, span_loss
from lmjax.objective.weighted import LossFunction, Metrics, Weighted, with_auxiliary
from lmjax.tasks.labelled import LabelledTask, Predictions
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values


@dataclass(frozen=True)
class QuestionAnswering(LabelledTask):
    """Answers that are spans of a passage, or none (Devlin et al. 2018, sections 4.2 and 4.3).

    Rows are [CLS] question [SEP] passage [SEP], in windows where the passage is long: 384 tokens are usual for
    rows.sequence_length. In evaluations `best_f1_threshold` is the null threshold that the validation data ask for.
    """

    example_type: ClassVar[type] = Question
    metrics: ClassVar[tuple[str, ...] | None] = ("exact", "f1", "best_exact", "best_f1")

    marks: Literal["squad_1", "squad_2", "cmrc"] = "squad_2"  # whose script; only in "squad_2" may an answer be none
    stride: PositiveInt = 128  # tokens from one window of a passage to the next
    question_length: PositiveInt = 64  # tokens of a question, at most
    answer_length: PositiveInt = 30  # tokens of an answer, at most
    n_best: PositiveInt = 20
    null_threshold: float = 0.0  # there is no answer where its score is that much above the best span's

    @property
    def may_be_none(self) -> bool:
        return self.marks == "squad_2"

    def prepared(self) -> QuestionAnswering:
        return self

    def labels_of(self, examples: Sequence[Question]) -> tuple[str, ...]:
        return ()

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        rows, length = resolved.settings.loading.batch_size, resolved.settings.loading.sequence_length
        tokens = {name: Field((rows, length)) for name in (TOKENS, TYPES, POSITIONS, SEGMENTS)}
        return tokens | {SPANS: Field((rows, 2)), LABEL_WEIGHTS: Field((rows,), "float32")}

    @property
    def inputs(self) -> str:
        return "questions"

    def example(self, texts: Sequence[str], where: str) -> Question:
        expected = "a question and its passage, neither of them empty"
        require(len(texts) == 2 and all(map(str.strip, texts)), where, list(texts), expected, "give both")
        return Question(where, texts[0], texts[1], (), False, "", where)

    def unlabelled(self, example: Question) -> Question:
        return replace(example, answers=(), impossible=False)

    def table(self, answer: dict[str, Any]) -> list[tuple[str, ...]]:
        spans = [(f"{span['probability']:.1%}", span["text"], _place(span)) for span in answer["n_best"]]
        none = [(f"{answer['null_probability']:.1%}", "no answer", "")] if self.may_be_none else []
        return [("probability", "answer", "characters"), *(spans if answer["text"] else [*none, *spans])]

    def check_examples(self, examples: Sequence[Question]) -> None:
        for each in examples:
            if not each.answers and not each.impossible:
                raise BadExampleError(each.where, "expected an answer, or is_impossible", "found neither")

    def warnings(self, train: Sequence[Question], validation: Sequence[Question]) -> list[str]:
        shared, passages = shared_passages(train, validation), {each.passage for each in validation}
        if not shared:
            return []
        return [
            f"{len(shared):,} of the {len(passages):,} passages of task.validation are in task.train, too: what was "
            "learned of them is measured on them; give other articles to either"
        ]

    def rows_of(self, examples: Sequence[Question], resolved: ResolvedStage) -> QuestionRows:
        assert resolved.tokenizer is not None
        sizes = resolved.settings.loading.sequence_length, self.stride, self.question_length
        decoder = resolved.model.attention.causal
        return question_rows(examples, resolved.tokenizer, self.frame(resolved), *sizes, null_last=decoder)

    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        return 2, "tokens"

    def loss(self, model: TaskModel, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, Metrics]:
            scores_BT2, aux = model.outputs_of(params, batch, rng)
            loss, metrics = span_loss(scores_BT2, batch[SEGMENTS], batch[SPANS], batch[LABEL_WEIGHTS])
            return with_auxiliary(loss, metrics, aux, batch[LABEL_WEIGHTS])

        return loss_fn

    def predict(self, model: TaskModel, params: Any, batch: Batch) -> dict[str, Any]:
        scores_BT2, _ = model.outputs_of(params, batch)
        scores_BT2 = masked_scores(scores_BT2, batch[SEGMENTS])
        return {"starts": scores_BT2[..., 0], "ends": scores_BT2[..., 1]}

    def answers(
        self, predictions: Predictions, rows: QuestionRows, examples: Sequence[Question]
    ) -> list[dict[str, Any]]:
        limits: dict[str, Any] = {"n_best": self.n_best, "longest": self.answer_length}
        found = extracted_answers(
            rows, predictions["starts"], predictions["ends"], **limits, may_be_none=self.may_be_none
        )
        return [answer.record(self.null_threshold if self.may_be_none else None) for answer in found]

    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[Question]) -> Values:
        references = [[text for text, _ in each.answers] for each in examples]
        texts = [answer["n_best"][0]["text"] if answer["n_best"] else "" for answer in answers]
        nulls = [answer["null_score"] for answer in answers] if self.may_be_none else None
        return question_metrics(texts, references, self.marks, nulls, self.null_threshold)


def _place(span: dict[str, Any]) -> str:
    return f"{span['begin']} to {span['end']}"
