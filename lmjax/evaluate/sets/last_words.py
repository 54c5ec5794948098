"""LAMBADA (Paperno et al. 2016), which asks for the last word of a text: plainly, and as a blank to be filled in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import records

_FILE = "lambada/lambada_dev.jsonl"


def read_lambada(path: Path) -> Iterator[Question | str]:
    """The text continues with its last word."""
    yield from _asked(path, "")


def read_cloze(path: Path) -> Iterator[Question | str]:
    """A blank stands for the last word, which follows after an arrow (GPT-3, Figure G.21)."""
    yield from _asked(path, " ____. ->")


def _asked(path: Path, blank: str) -> Iterator[Question | str]:
    for row in records(path):
        context, _, word = str(row["text"]).rpartition(" ")
        yield Question(context + blank, (f" {word}",), 0) if context and word else "it has no last word"


SETS = {
    "lambada": QuestionSet(_FILE, read_lambada, word=True),
    "lambada_cloze": QuestionSet(_FILE, read_cloze, word=True, description="Fill in blank:"),
}
