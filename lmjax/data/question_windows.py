"""Questions on passages as rows: [CLS] question [SEP] a window of the passage [SEP], with the columns of the answer.

In: questions and a tokenizer. Out: rows. A passage that is longer than a row is read in windows that overlap (Devlin et
al. 2018; the code of BERT for SQuAD). In array names, N counts questions and R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lmjax.data.batch import LABEL_WEIGHTS, SPANS, TOKENS, TYPES, Batch, one_segment
from lmjax.data.frames import Frame
from lmjax.data.labelled import Question
from lmjax.data.token_strings import TokenStrings
from lmjax.data.windows import Windows, windows
from lmjax.errors import require
from lmjax.tokenizers.pieces import Pieces
from lmjax.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class QuestionRows:
    """The rows of N questions, window after window of each; a `Rows` of `sequence_length` columns."""

    questions: Sequence[Question]
    frame: Frame
    sequence_length: int
    asked: TokenStrings  # the questions, cut
    passages: TokenStrings  # different passages
    passage_numbers: np.ndarray  # of each question's passage, int64 [N]
    offsets: Sequence[np.ndarray]  # the characters [tokens, 2] of each passage's tokens
    windows: Windows  # of the passage's tokens; `texts` are numbers of questions
    null_columns: np.ndarray  # the column that stands for no answer, int64 [R]
    spans: np.ndarray  # int32 [R, 2]
    weights: np.ndarray  # float32 [R]: 0 where the question is not labelled
    dropped_tokens = 0

    def __len__(self) -> int:
        return len(self.windows.texts)

    @cached_property
    def first_columns(self) -> np.ndarray:
        """The column of each row's first token of the passage, int64 [R]."""
        return self.asked.sizes[self.windows.texts] + 2

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each row, int32 [R]."""
        return (self.first_columns + self.windows.ends - self.windows.begins + 1).astype(np.int32)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [B]: tokens, types, positions and segments [B, T], spans and weights."""
        texts, begins, ends = (each[indices] for each in self.windows)
        first_B1 = self.first_columns[indices][:, None]
        last_B1 = first_B1 + (ends - begins)[:, None]  # the column of the last special token
        column_T = np.arange(self.sequence_length)[None]
        question_BT = self.asked.at(texts, column_T - 1)
        passage_BT = self.passages.at(self.passage_numbers[texts], column_T - first_B1 + begins[:, None])
        tokens_BT = np.where(column_T < first_B1 - 1, question_BT, passage_BT)
        tokens_BT[:, 0] = self.frame.begin
        np.put_along_axis(tokens_BT, first_B1 - 1, np.int32(self.frame.between), axis=1)
        np.put_along_axis(tokens_BT, last_B1, np.int32(self.frame.end), axis=1)
        real_BT = column_T <= last_B1
        return {
            TOKENS: np.where(real_BT, tokens_BT, np.int32(0)),
            TYPES: (real_BT & (column_T >= first_B1)).astype(np.int32),
            **one_segment(real_BT),
            SPANS: self.spans[indices],
            LABEL_WEIGHTS: self.weights[indices],
        }


def question_rows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    frame: Frame,
    length: int = 384,
    stride: int = 128,
    question_length: int = 64,
    null_last: bool = False,
) -> QuestionRows:
    """The rows of questions: `length` columns, windows `stride` tokens apart, at most so many tokens of a question.

    The span of a row is that of the first answer where the window has all of it. Else it is the first column, that of
    [CLS], or with `null_last` that of the last token, which alone sees the row in a decoder. Raises FieldError for a
    stride or a length that leaves tokens of a passage out.
    """
    expected = f"{question_length + 4} or more, for {question_length} tokens of a question and some of its passage"
    require(length > question_length + 3, "rows.sequence_length", length, expected, "raise it")
    numbers: dict[str, int] = {}
    passage_N = np.array([numbers.setdefault(each.passage, len(numbers)) for each in questions], np.int64)
    pieces = tokenizer.pieces(list(numbers))
    asked = TokenStrings.of(
        [ids[:question_length] for ids in tokenizer.encode_batch([each.question for each in questions])]
    )
    passages = TokenStrings.of([each.ids for each in pieces])
    cut = windows(passages.sizes[passage_N], length - 3 - asked.sizes, stride)
    spans_N2 = np.array(
        [answer_tokens(each, pieces[number]) for each, number in zip(questions, passage_N, strict=True)], np.int64
    ).reshape(-1, 2)
    spans_R2 = spans_N2[cut.texts]
    inside_R = (spans_R2[:, 0] >= cut.begins) & (spans_R2[:, 1] < cut.ends) & (spans_R2[:, 0] <= spans_R2[:, 1])
    columns_R2 = spans_R2 + (asked.sizes[cut.texts] + 2 - cut.begins)[:, None]
    null_R = asked.sizes[cut.texts] + 2 + cut.ends - cut.begins if null_last else np.zeros(len(cut.texts), np.int64)
    labelled_N = np.array([bool(each.answers) or each.impossible for each in questions], np.float32)
    offsets = [each.offsets for each in pieces]
    spans_R2 = np.where(inside_R[:, None], columns_R2, null_R[:, None]).astype(np.int32)
    weights_R = labelled_N[cut.texts]
    return QuestionRows(questions, frame, length, asked, passages, passage_N, offsets, cut, null_R, spans_R2, weights_R)


def answer_tokens(question: Question, passage: Pieces) -> tuple[int, int]:
    """The first and the last token of the passage that have characters of the first answer; (-1, -2) where none has."""
    if not question.answers or not len(passage):
        return -1, -2
    text, start = question.answers[0]
    begins, ends = passage.offsets.T
    first = int(np.searchsorted(np.maximum.accumulate(ends), start, side="right"))
    last = int(np.searchsorted(begins, start + len(text), side="left")) - 1
    return (first, last) if first <= last else (-1, -2)


def shared_passages(train: Sequence[Question], validation: Sequence[Question]) -> list[str]:
    """The passages that are on both sides, in the order of the validation: what is learned of one is measured on it."""
    learned = {question.passage for question in train}
    return list(dict.fromkeys(question.passage for question in validation if question.passage in learned))
