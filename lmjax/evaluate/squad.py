"""Exact match and F1 of extracted answers, as the official scripts of SQuAD 1.1, SQuAD 2.0 and CMRC 2018 have them.

In: the predicted text of each question, "" for none, and the texts that are right. Out: numbers from 0 to 1.
"""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np

from lmjax.evaluate.text_marks import f1_of, normalised

Marks = tuple[float, float]  # whether it is right, and F1

_DROPPED = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # punctuation that CMRC 2018 leaves out
_CHINESE, _MARKS = "\u4e00-\u9fa5", r";@#$%&?!\[\](){}<>\"—–"
_SEGMENTS = re.compile(
    rf"""[{_CHINESE}] | [{_MARKS}] | \.\.+ | [:,](?!\d)  # a comma in a number is part of it,
    | \.(?=\s*([{_CHINESE}]|$))                          # and so is a point, but behind the last word
    | ([^\s{_CHINESE}{_MARKS}:,.] | [:,](?=\d) | \.(?!\.|\s*([{_CHINESE}]|$)))+""",
    re.VERBOSE,
)


def squad_1(text: str, references: Sequence[str]) -> Marks:
    """SQuAD 1.1 (Rajpurkar et al. 2016): every question has an answer; of the references the best."""
    found, golds = normalised(text), [normalised(reference) for reference in references]
    f1 = max(f1_of(found, words) if found and words else 0.0 for words in golds)
    return max(float(found == words) for words in golds), f1


def squad_2(text: str, references: Sequence[str]) -> Marks:
    """SQuAD 2.0 (Rajpurkar et al. 2018): without references, "" is right. References without a word count for none."""
    found = normalised(text)
    golds = [words for words in map(normalised, references) if words] or [[]]
    return max(float(found == words) for words in golds), max(f1_of(found, words) for words in golds)


def cmrc_2018(text: str, references: Sequence[str]) -> Marks:
    """CMRC 2018 (Cui et al. 2019): F1 of the longest common run of Chinese characters and of other words.

    Case and the set's list of punctuation do not count. Words between Chinese characters are cut as the official
    script's NLTK does it, except that what has an apostrophe, such as "don't", stays one word.
    """
    plain, segments = _plain(text), _segments(text)
    scores = []
    for reference in references:
        others = _segments(reference)
        common = SequenceMatcher(None, others, segments, autojunk=False).find_longest_match().size
        scores.append(2 * common / (len(segments) + len(others)) if common else 0.0)
    return float(any(plain == _plain(reference) for reference in references)), max(scores)


def _segments(text: str) -> list[str]:
    """Chinese characters, marks, and the words between them."""
    return [found[0] for found in _SEGMENTS.finditer(_plain(text))]


def _plain(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _DROPPED)


MARKS: dict[str, Callable[[str, Sequence[str]], Marks]] = {"squad_1": squad_1, "squad_2": squad_2, "cmrc": cmrc_2018}


def question_metrics(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    marks: str = "squad_2",
    null_scores: Sequence[float] | None = None,
    threshold: float = 0.0,
) -> dict[str, float]:
    """The numbers of an evaluation over N questions, N above 0: `exact` and `f1`.

    Where some questions have no answer, also `HasAns_exact`, `HasAns_f1`, `NoAns_exact` and `NoAns_f1`, of those that
    have one and of those that have none. With `null_scores`, how much rather a question has no answer, a text whose
    score is above `threshold` counts as "", and `best_exact`, `best_f1` with `best_exact_threshold`,
    `best_f1_threshold` say what another threshold would give.
    """
    raw_N2 = np.array([MARKS[marks](text, golds) for text, golds in zip(texts, references, strict=True)])
    answered_N, has_N = np.array([bool(text) for text in texts]), np.array([bool(golds) for golds in references])
    marks_N2 = raw_N2
    best = {}
    if null_scores is not None:
        scores_N = np.asarray(null_scores, np.float64)
        marks_N2 = np.where((scores_N > threshold)[:, None], ~has_N[:, None], raw_N2)
        for name, values_N in zip(("exact", "f1"), raw_N2.T, strict=True):
            best[f"best_{name}"], best[f"best_{name}_threshold"] = best_threshold(values_N, scores_N, has_N, answered_N)
    metrics = _means("", marks_N2)
    if not has_N.all():
        parts = (("HasAns_", has_N), ("NoAns_", ~has_N))
        metrics |= {
            name: mean for prefix, of in parts if of.any() for name, mean in _means(prefix, marks_N2[of]).items()
        }
    return metrics | best


def _means(prefix: str, marks_N2: np.ndarray) -> dict[str, float]:
    exact, f1 = marks_N2.mean(axis=0).tolist()
    return {f"{prefix}exact": exact, f"{prefix}f1": f1}


def best_threshold(
    marks_N: np.ndarray, null_scores_N: np.ndarray, has_answer_N: np.ndarray, answered_N: np.ndarray
) -> tuple[float, float]:
    """The best mean that a threshold of the null scores gives, and the lowest place for it between two scores.

    A question whose null score is above the threshold counts as without an answer; any other has its mark in `marks_N`.
    As the official script of SQuAD 2.0, except that questions of one score go together, as a threshold takes them. The
    script's threshold is the score of the last question that is answered; here it is halfway to the next score, so that
    rounding changes nothing, or 1 beyond the scores where all questions, or none, are answered.
    """
    order = np.argsort(null_scores_N, kind="stable")
    scores = null_scores_N[order]
    gains = np.where(has_answer_N, marks_N, np.where(answered_N, -1.0, 0.0))[order]
    sums = np.concatenate([[0.0], np.cumsum(gains)]) + np.count_nonzero(~has_answer_N)
    ends = np.flatnonzero(np.append(scores[:-1] != scores[1:], True)) + 1  # behind the last question of each score
    places = np.concatenate([[0], ends])
    best = places[np.argmax(sums[places])]
    edges = np.concatenate([scores[:1] - 1.0, scores, scores[-1:] + 1.0])
    middle = edges[best : best + 2].mean() if 0 < best < len(scores) else edges[best + (best > 0)]
    return float(sums[best]) / len(scores), float(middle)
