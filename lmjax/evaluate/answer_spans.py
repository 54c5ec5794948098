"""The answers that scores of first and last tokens give: spans of the original text, from all windows of a question.

In: rows of questions, and scores for each of their columns. Out: for each question the best spans, by characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.data.question_windows import QuestionRows
from lmjax.data.windows import most_context

_AT_ONCE = 512  # questions, whose pairs of places are in memory together


@dataclass(frozen=True)
class Span:
    """An answer: characters [begin, end) of the passage, its text, its score, and its share of the n best."""

    text: str
    begin: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class Extracted:
    """What a model answers to a question.

    spans: the n best, the best first; their texts are different. null_score: the score of no answer less that of the
      best span; 0 where there is no span. null_probability: the share of no answer beside the n best; 0 where a
      question must have an answer.
    """

    id: str
    spans: tuple[Span, ...]
    null_score: float
    null_probability: float

    def text(self, threshold: float | None) -> str:
        """The best span's text; "" where the null score is above the threshold, if there is one, and without spans."""
        none = not self.spans or (threshold is not None and self.null_score > threshold)
        return "" if none else self.spans[0].text

    def record(self, threshold: float | None) -> dict[str, Any]:
        """What a JSONL file says of it."""
        text = self.text(threshold)
        place = {"begin": self.spans[0].begin, "end": self.spans[0].end} if text else {}
        return {
            "id": self.id,
            "text": text,
            **place,
            "null_score": self.null_score,
            "null_probability": self.null_probability,
            "n_best": [vars(span) for span in self.spans],
        }


def extracted_answers(
    rows: QuestionRows,
    starts_RT: np.ndarray,
    ends_RT: np.ndarray,
    *,
    n_best: int = 20,
    longest: int = 30,
    may_be_none: bool = True,
) -> list[Extracted]:
    """The answer to each question, from scores [R, T] that a column is an answer's first or last one.

    As the code of BERT for SQuAD: of each window the `n_best` first and last tokens are paired, where the last is not
    before the first and at most `longest` tokens make the span; a span counts in the window that sees most around its
    first token; its score is the sum of both, and that of no answer that of `null_columns`, in the window where it
    is lowest. T may be less than the rows' length where no row has as many tokens. BERT's code pairs the best of all
    columns, here only those of the passage are ranked.
    """
    out: list[Extracted] = []
    rows_N = np.bincount(rows.windows.texts, minlength=len(rows.questions))
    for some in np.split(np.arange(len(rows)), np.cumsum(rows_N)[_AT_ONCE - 1 : -1 : _AT_ONCE]):
        if len(some):
            out += _answers(rows, some, starts_RT[some], ends_RT[some], n_best, longest, may_be_none)
    return out


def _answers(
    rows: QuestionRows,
    at_R: np.ndarray,
    starts_RT: np.ndarray,
    ends_RT: np.ndarray,
    n_best: int,
    longest: int,
    may_be_none: bool,
) -> Iterator[Extracted]:
    """The answers to the questions of the rows `at_R`, which are all of theirs, from the scores of these rows."""
    question_R = rows.windows.texts[at_R]
    questions, firsts = np.unique(question_R, return_index=True)
    none = np.arange(len(at_R)), rows.null_columns[at_R]
    nulls = np.minimum.reduceat(starts_RT[none].astype(np.float64) + ends_RT[none], firsts)
    scores, row, first, last = _pairs(rows, at_R, starts_RT, ends_RT, n_best, longest)
    order = np.lexsort((-scores, question_R[row]))
    scores, row = scores[order], row[order]
    shift = (rows.windows.begins - rows.first_columns)[at_R[row]]  # from a column to a token of the passage
    first, last = first[order] + shift, last[order] + shift
    edges = np.searchsorted(question_R[row], [*questions, questions[-1] + 1]).tolist()
    for number, null, a, b in zip(questions.tolist(), nulls.tolist(), edges[:-1], edges[1:], strict=True):
        yield _extracted(rows, number, scores[a:b], first[a:b], last[a:b], null, n_best, may_be_none)


def _pairs(
    rows: QuestionRows, at_R: np.ndarray, starts_RT: np.ndarray, ends_RT: np.ndarray, n_best: int, longest: int
) -> tuple[np.ndarray, ...]:
    """Score, row (a place in `at_R`), first and last column of the spans of each row's best first and last tokens."""
    column_T = np.arange(starts_RT.shape[1])[None]
    first_R1 = rows.first_columns[at_R][:, None]
    sizes_R1 = (rows.windows.ends - rows.windows.begins)[at_R][:, None]
    passage_RT = (column_T >= first_R1) & (column_T < first_R1 + sizes_R1)
    leading_RT = passage_RT.copy()
    for row, leads in _leading(rows, at_R):
        leading_RT[row, first_R1[row, 0] : first_R1[row, 0] + len(leads)] &= leads
    first_RK, first_score_RK = _best(np.where(leading_RT, starts_RT, -np.inf), n_best)
    last_RK, last_score_RK = _best(np.where(passage_RT, ends_RT, -np.inf), n_best)
    tokens_RKK = last_RK[:, None, :] - first_RK[:, :, None] + 1
    scores_RKK = first_score_RK[:, :, None] + last_score_RK[:, None, :]
    r, a, b = np.nonzero((tokens_RKK >= 1) & (tokens_RKK <= longest) & np.isfinite(scores_RKK))
    return scores_RKK[r, a, b], r, first_RK[r, a], last_RK[r, b]


def _best(scores_RT: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of the `count` highest scores of each row, in any order, and these scores as float64."""
    scores_RT = scores_RT.astype(np.float64)
    count = min(count, scores_RT.shape[1])
    columns_RK = np.argpartition(-scores_RT, count - 1, axis=1)[:, :count]
    return columns_RK, np.take_along_axis(scores_RT, columns_RK, axis=1)


def _leading(rows: QuestionRows, at_R: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For rows of questions with several windows: the row's place in `at_R`, and which of its tokens it sees best."""
    texts, begins, ends = rows.windows
    windows_N = np.bincount(texts, minlength=len(rows.questions))
    firsts_N = np.cumsum(windows_N) - windows_N
    known, best = -1, np.zeros(0)
    for place in np.flatnonzero(windows_N[texts[at_R]] > 1):
        row = at_R[place]
        own = slice(firsts_N[texts[row]], firsts_N[texts[row]] + windows_N[texts[row]])
        if known != texts[row]:
            known, best = texts[row], most_context(begins[own], ends[own], int(ends[own].max()))
        yield int(place), best[begins[row] : ends[row]] == row - own.start


def _extracted(
    rows: QuestionRows,
    number: int,
    scores: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    null: float,
    n_best: int,
    may_be_none: bool,
) -> Extracted:
    question, offsets = rows.questions[number], rows.offsets[rows.passage_numbers[number]]
    places = zip(offsets[first, 0].tolist(), offsets[last, 1].tolist(), scores.tolist(), strict=True)
    spans: dict[str, tuple[int, int, float]] = {}
    for begin, end, score in places:
        text = question.passage[begin:end]
        if text and len(spans) < n_best:
            spans.setdefault(text, (begin, end, score))
    if not spans:
        return Extracted(question.id, (), 0.0, float(may_be_none))
    logits = np.array([null, *(score for _, _, score in spans.values())])
    logits[0] = logits[0] if may_be_none else -np.inf
    shares = np.exp(logits - logits.max())
    null_share, *others = (shares / shares.sum()).tolist()
    found = tuple(Span(text, *place, share) for (text, place), share in zip(spans.items(), others, strict=True))
    return Extracted(question.id, found, float(null - found[0].score), null_share)
