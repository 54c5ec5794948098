"""Winograd schemas: which of the candidates does a pronoun stand for?

The pronoun is replaced by each candidate, and what follows it is scored: the candidate itself is not, so that a rare
name costs nothing (Trinh and Le 2018, "partial" scoring; GPT-3, Figures G.13 and G.14).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import records

_POSSESSIVE = ("his", "their", "its")  # "her" is not always one


def read_winogrande(path: Path) -> Iterator[Question | str]:
    """Sakaguchi et al. 2020: two beginnings, which differ in one candidate, and their common end."""
    for row in records(path):
        options, end = row["context_options"], f" {row['continuation']}"
        each = zip(*(option.split(" ") for option in options), strict=False)
        context = " ".join(words[0] for words in itertools.takewhile(lambda words: len(set(words)) == 1, each))
        yield Question(context, tuple(option[len(context) :] + end for option in options), int(row["gold"]), end=end)


def read_winograd(path: Path) -> Iterator[Question | str]:
    """The Winograd schemas of SuperGLUE (Wang et al. 2019), which has a line for each candidate of a pronoun.

    The lines of one pronoun are one question. It is none where its candidates were not all published: with one
    candidate alone, or without the right one.
    """
    pronouns: dict[tuple[str, int, str], dict[str, bool]] = {}
    for row in records(path):
        target: dict[str, Any] = row["target"]
        candidates = pronouns.setdefault((row["text"], int(target["span2_index"]), target["span2_text"]), {})
        candidates[target["span1_text"]] = bool(row["label"])
    for (text, at, pronoun), candidates in pronouns.items():
        yield _schema(text.split(), at, pronoun, candidates)


def _schema(words: list[str], at: int, pronoun: str, candidates: dict[str, bool]) -> Question | str:
    before, after = _joined(words[:at]), _joined(words[at:])
    end = after.removeprefix(pronoun)
    if end == after:
        return f"word {at} begins {after[:20]!r}, expected the pronoun {pronoun!r}"
    if len(candidates) < 2 or sum(candidates.values()) != 1:
        return f"of the candidates {', '.join(candidates)}, {sum(candidates.values())} are right; expected 1 of several"
    if not end:
        return f"nothing follows the pronoun {pronoun!r}"
    blank = " " if before else ""
    answers = tuple(f"{blank}{_in_place_of(pronoun, candidate)}{end}" for candidate in candidates)
    return Question(before, answers, list(candidates.values()).index(True), end=end)


def _joined(words: list[str]) -> str:
    """The text of words, of which punctuation and a possessive "'s" may be some."""
    return re.sub(r" (?=[.,;:?!]|'s\b)", "", " ".join(words))


def _in_place_of(pronoun: str, candidate: str) -> str:
    """The candidate as it is written where the pronoun is: with a capital or none, and as a possessive."""
    if pronoun[:1].isupper():
        candidate = candidate[:1].upper() + candidate[1:]
    else:
        candidate = re.sub(r"^(The|A|An|His|Her|Their|My)\b", lambda article: article[0].lower(), candidate)
    if pronoun.lower() not in _POSSESSIVE:
        return candidate
    return f"{candidate}'" if candidate.endswith("s") else f"{candidate}'s"


SETS = {
    "winograd": QuestionSet("winograd/wsc_val.jsonl", read_winograd, pool="winograd/wsc_train.jsonl"),
    "winogrande": QuestionSet("winograd/winogrande_dev.jsonl", read_winogrande),
}
