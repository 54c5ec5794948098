"""Questions with choices, as they are put to a language model without training it: prompts, shots, sets of questions.

In: the published files of a set. Out: `Question`s, whose choices are scored by their log-probability after the context.
A set is a `QuestionSet`: where its file is, how it is read, and what a shot looks like.
"""

from __future__ import annotations

import csv
import io
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.documents import BadRecordError
from lmjax.data.record_files import rows
from lmjax.errors import UserError
from lmjax.files import read_bytes

BETWEEN = "\n\n"  # shots


class Question(NamedTuple):
    """A context, the texts that may follow it, each with the blank that it begins with, and which one is right."""

    context: str
    choices: tuple[str, ...]
    gold: int
    bare: str = ""  # a context that says nothing of the question, for the unconditional probability (GPT-3)

    @property
    def solved(self) -> str:
        return self.context + self.choices[self.gold]


class Rows(NamedTuple):
    """The questions of a file, and for each record that is none where it is and why."""

    questions: list[Question]
    left_out: list[str]


@dataclass(frozen=True)
class QuestionSet:
    """`file` and `pool`, from which shots are drawn (default: the file itself), are in the folder of all sets.

    `word` is for a set that asks for the last word of a text: each question has one choice, which has to be likeliest.
    """

    file: str
    read: Callable[[Path], Iterator[Question | str]]  # a text says why a record is left out
    pool: str = ""
    word: bool = False

    def rows(self, folder: Path, *, pool: bool = False) -> Rows:
        """Raises UserError where the file cannot be read, or holds no question."""
        path = folder / (self.pool or self.file if pool else self.file)
        found, left_out = [], []
        for number, each in enumerate(_published(self.read(path), path), 1):
            reason = each if isinstance(each, str) else _fault(each)
            if reason:
                left_out.append(f"{path}:{number}: {reason}")
            else:
                found.append(each)
        if not found:
            raise UserError(f"{path}: no question is left of {len(left_out)} records; {(*left_out, 'it is empty')[0]}")
        return Rows(found, left_out)  # type: ignore[arg-type]


def _published(records: Iterator[Question | str], path: Path) -> Iterator[Question | str]:
    """The records. Raises UserError where one has not the fields of the published file."""
    for number in itertools.count(1):
        try:
            each = next(records, None)
        except (KeyError, TypeError, ValueError) as error:
            what = f"record {number} is none of this set: {type(error).__name__}: {error}"
            raise UserError(f"{path}: {what}; take the published file") from error
        if each is None:
            return
        yield each


def _fault(question: Question) -> str:
    if not 0 <= question.gold < len(question.choices):
        return f"the right answer is number {question.gold} of {len(question.choices)}"
    empty = [number for number, choice in enumerate(question.choices) if not choice.strip()]
    return f"choice {empty[0]} is empty" if empty else ""


def with_shots(question: Question, pool: Sequence[Question], shots: int, rng: np.random.Generator) -> list[str]:
    """The contexts of a question with so many shots before it, drawn from the pool, then with one less, down to none.

    The question itself is no shot. Raises UserError where the pool has too few others.
    """
    others = [each for each in pool if each.context != question.context]
    if len(others) < shots:
        raise UserError(f"--shots {shots}: the pool has {len(others)} other questions; ask for fewer")
    drawn = [others[at].solved for at in rng.choice(len(others), shots, replace=False)] if shots else []
    return [BETWEEN.join([*drawn[first:], question.context]) for first in range(shots + 1)]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for place, row in rows(path):
        if isinstance(row, BadRecordError):
            raise ValueError(f"{place}: {row}, expected an object in each line")
        yield row


def read_hellaswag(path: Path) -> Iterator[Question | str]:
    """Zellers et al. 2019: an ending follows `ctx` after a blank."""
    for row in _json_lines(path):
        yield Question(row["ctx"], tuple(f" {ending}" for ending in row["endings"]), int(row["label"]))


def read_piqa(path: Path) -> Iterator[Question | str]:
    """Bisk et al. 2020, asked as lm-evaluation-harness does; the answers are in a file of digits beside it."""
    labels = path.with_name(path.name.replace(".jsonl", "_labels.lst"))
    golds = read_bytes(labels).decode("utf-8").split()
    goals = list(_json_lines(path))
    if len(golds) != len(goals):
        raise UserError(
            f"{labels}: {len(golds)} labels for {len(goals)} questions of {path.name}; take both of one set"
        )
    for row, gold in zip(goals, golds, strict=True):
        answers = (f" {row['sol1']}", f" {row['sol2']}")
        yield Question(f"Question: {row['goal']}\nAnswer:", answers, int(gold), bare="Answer:")


def read_arc(path: Path) -> Iterator[Question | str]:
    """Clark et al. 2018: question, four choices and a letter, without a header."""
    for cells in csv.reader(io.StringIO(read_bytes(path).decode("utf-8"), newline="")):
        if len(cells) != 6:
            yield f"{len(cells)} cells, expected a question, four choices and a letter"
        elif cells[5] not in ("A", "B", "C", "D"):
            yield f"the answer is {cells[5]!r}, expected A, B, C or D"
        else:
            answers = tuple(f" {choice}" if choice else "" for choice in cells[1:5])
            yield Question(f"Question: {cells[0]}\nAnswer:", answers, "ABCD".index(cells[5]), bare="Answer:")


def read_copa(path: Path) -> Iterator[Question | str]:
    """Roemmele et al. 2011: the premise, then "because" or "therefore", then the alternative (as GPT-3 asks)."""
    try:
        items = ElementTree.fromstring(read_bytes(path)).iter("item")
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: expected XML: {error}; take the published file") from error
    for item in items:
        premise, *alternatives = ((item.findtext(name) or "").strip() for name in ("p", "a1", "a2"))
        joint = {"cause": "because", "effect": "therefore"}.get(item.get("asks-for", ""), "")
        gold = item.get("most-plausible-alternative", "")
        if not joint or gold not in ("1", "2"):
            yield f"it asks for {item.get('asks-for')!r}, and {gold!r} is right; expected cause or effect, and 1 or 2"
        else:
            answers = tuple(f" {each[:1].lower()}{each[1:]}" if each else "" for each in alternatives)
            yield Question(f"{premise.removesuffix('.')} {joint}", answers, int(gold) - 1)


def read_lambada(path: Path) -> Iterator[Question | str]:
    """Paperno et al. 2016: a text whose last word is asked for."""
    for row in _json_lines(path):
        context, blank, word = str(row["text"]).rpartition(" ")
        yield Question(context, (blank + word,), 0) if context and word else "it has no last word"


SETS = {
    "hellaswag": QuestionSet("hellaswag/hellaswag_400.jsonl", read_hellaswag),
    "piqa": QuestionSet("piqa/piqa_dev.jsonl", read_piqa),
    "arc_easy": QuestionSet("arc/arc_easy_a.csv", read_arc, pool="arc/arc_easy_fewshot_pool.csv"),
    "copa": QuestionSet("copa/copa-dev.xml", read_copa),
    "lambada": QuestionSet("lambada/lambada_dev.jsonl", read_lambada, word=True),
}
