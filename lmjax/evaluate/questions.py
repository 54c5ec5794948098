"""Questions as they are put to a language model without training it: contexts, shots, sets of questions.

In: the published files of a set. Out: `Question`s, whose choices are scored by their log-probability after the
context, or `OpenQuestion`s, whose answers the model writes. A set is a `QuestionSet`: where its file is, how it is
read, and what a prompt looks like. The sets are in `lmjax/evaluate/sets/`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lmjax.errors import UserError, shortened

BETWEEN = "\n\n"  # shots
Some = TypeVar("Some")


class Question(NamedTuple):
    """A context, the texts that may follow it, each with the blank that it begins with, and which one is right."""

    context: str
    choices: tuple[str, ...]
    gold: int
    bare: str = ""  # a context that says nothing of the question, for the unconditional probability (GPT-3)
    end: str = ""  # with which every choice ends: it alone is scored, after what precedes it ("partial evaluation")
    group: str = ""  # such as the subject of an examination

    @property
    def solved(self) -> str:
        return self.context + self.choices[self.gold]

    @property
    def fault(self) -> str:
        """Why this is no question; empty where it is one."""
        if not 0 <= self.gold < len(self.choices):
            return f"the right answer is number {self.gold} of {len(self.choices)}"
        empty = [number for number, choice in enumerate(self.choices) if not choice.strip()]
        return f"choice {empty[0]} is empty" if empty else ""

    def record(self) -> dict[str, Any]:
        return {"context": self.context, "choices": self.choices, "gold": self.gold}


class OpenQuestion(NamedTuple):
    """A context after which the model writes its answer; `target` is what a shot shows in its place."""

    context: str
    target: str  # with the blank that it begins with
    references: tuple[str, ...]  # answers that are right; none where the question has no answer
    group: str = ""

    @property
    def solved(self) -> str:
        return self.context + self.target

    @property
    def fault(self) -> str:
        return "" if self.target.strip() else "its answer is empty"

    def record(self) -> dict[str, Any]:
        return {"context": self.context, "references": self.references}


AnyQuestion = Question | OpenQuestion


class Writing(NamedTuple):
    """How an answer is written, greedily, and marked: a number from 0 to 1 for each name, by text and references."""

    tokens: int  # at most
    stop: tuple[str, ...]
    mark: Callable[[str, Sequence[str]], dict[str, float]]


class Rows(NamedTuple):
    """The questions of a file, and for each record that is none where it is and why."""

    questions: list[Any]
    left_out: list[str]


@dataclass(frozen=True)
class QuestionSet:
    """`file` and `pool`, from which shots are drawn (default: the file itself), are in the folder of all sets.

    `word` is for a set that asks for the last word of a text: each question has one choice, which has to be likeliest.
    `writing` is for a set of `OpenQuestion`s.
    """

    file: str
    read: Callable[[Path], Iterator[Any]]  # questions; a text in the place of one says why a record is none
    pool: str = ""
    word: bool = False
    writing: Writing | None = None
    description: str = ""  # once, before the shots; {group} is the group of the question, with blanks
    between: str = BETWEEN  # description, shots and question
    own_group: bool = False  # shots are the first of the question's group in the published order, and not drawn

    def rows(self, folder: Path, *, pool: bool = False) -> Rows:
        """Raises UserError where the file cannot be read, or holds no question."""
        path = folder / (self.pool or self.file if pool else self.file)
        found, left_out = [], []
        for number, each in enumerate(_published(self.read(path), path), 1):
            reason = each if isinstance(each, str) else each.fault or self._one_choice(each)
            if reason:
                left_out.append(f"{path}:{number}: {reason}")
            else:
                found.append(each)
        if not found:
            raise UserError(f"{path}: no question is left of {len(left_out)} records; {(*left_out, 'it is empty')[0]}")
        return Rows(found, left_out)

    def _one_choice(self, question: AnyQuestion) -> str:
        """Why a question with nothing to choose from is none of a set of choices."""
        single = self.writing is None and not self.word and len(getattr(question, "choices", ())) < 2
        return "it has one choice, expected several" if single else ""

    def prompts(
        self, question: AnyQuestion, pool: Sequence[AnyQuestion], shots: int, rng: np.random.Generator
    ) -> list[str]:
        """The prompts of a question, as `with_shots` gives them, each after the description."""
        if self.own_group:
            pool = [each for each in pool if each.group == question.group]
        found = with_shots(question, pool, shots, None if self.own_group else rng, self.between)
        about = self.description.replace("{group}", question.group.replace("_", " "))
        return [f"{about}{self.between}{prompt}" for prompt in found] if about else found


def _published(records: Iterator[Any], path: Path) -> Iterator[Any]:
    """The records. Raises UserError where one has not the fields of the published file, or no texts in them."""
    for number in itertools.count(1):
        try:
            each = next(records, None)
            _require_texts(each)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"record {number} is none of this set: {type(error).__name__}: {error}"
            raise UserError(f"{path}: {what}; take the published file") from error
        if each is None:
            return
        yield each


def _require_texts(each: Any) -> None:
    """Raises ValueError where a field of a question is no text that can be encoded."""
    for name in ("context", "target"):
        value = getattr(each, name, "")
        if not isinstance(value, str):
            raise ValueError(f"its {name} is {shortened(value, 60)}, expected a text")
        value.encode()
    for text in (*getattr(each, "choices", ()), *getattr(each, "references", ())):
        if not isinstance(text, str):
            raise ValueError(f"{shortened(text, 60)} is one of its answers, expected a text")
        text.encode()


def spread(examples: Sequence[Some], limit: int | None) -> list[Some]:
    """`limit` of the examples, evenly spread over them, since a file may be sorted; None takes all."""
    count = len(examples)
    most = count if limit is None else min(limit, count)
    return [examples[at * count // most] for at in range(most)]


def with_shots(
    question: AnyQuestion,
    pool: Sequence[AnyQuestion],
    shots: int,
    rng: np.random.Generator | None,
    between: str = BETWEEN,
) -> list[str]:
    """The contexts of a question with so many shots before it, drawn from the pool, then with one less, down to none.

    Without `rng` they are the first of the pool. The question itself is no shot, nor is one of the same context. Raises
    UserError where the pool has too few others.
    """
    others = [each for each in pool if each.context != question.context] if shots else []
    if len(others) < shots:
        raise UserError(f"--shots {shots}: the pool has {len(others)} other questions; ask for fewer")
    drawn = range(shots) if rng is None or not shots else rng.choice(len(others), shots, replace=False)
    solved = [others[at].solved for at in drawn]
    return [between.join([*solved[first:], question.context]) for first in range(shots + 1)]
