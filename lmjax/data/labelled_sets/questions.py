"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and sets in their JSON, such as CMRC 2018 and XQuAD."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from lmjax.data.labelled import BadExampleError, Question, Reader
from lmjax.data.open_files import utf8_of
from lmjax.errors import shortened
from lmjax.files import decode_json, decode_text
from lmjax.settings.labelled import LabelledSettings

WRONG_SPAN = "its first answer is not at its place in the passage"


class _Answer(TypedDict):
    text: str
    answer_start: int


class _NamedRow(TypedDict):
    id: str
    question: str


class _Row(_NamedRow, total=False):
    answers: list[_Answer]
    is_impossible: bool


class _Paragraph(TypedDict):
    context: str
    qas: list[_Row]


class _ListedArticle(TypedDict):
    paragraphs: list[_Paragraph]


class _Article(_ListedArticle, total=False):
    title: str


class _File(TypedDict):
    data: list[_Article]


def read_squad(path: Path, settings: LabelledSettings) -> Iterator[Question | BadExampleError]:
    """The questions of a file, in its order.

    The first answer is the one to learn: where the passage does not have it at its `answer_start`, the question is no
    example. Further answers are references alone; one that is elsewhere has the place -1. A question without answers is
    impossible where `is_impossible` says so, else it is not labelled.

    Raises UserError for a file that is not of SQuAD's form.
    """
    contents = decode_json(decode_text(bytes(utf8_of(path)[:]), path), path, _File, "use a file in SQuAD's form")
    seen: set[str] = set()
    for article in contents["data"]:
        for paragraph in article["paragraphs"]:
            for row in paragraph["qas"]:
                where = f"{path}: question {row['id']}"
                if row["id"] in seen:
                    yield BadExampleError(where, "an earlier question has its id")
                    continue
                seen.add(row["id"])
                yield _question(row, paragraph["context"], article.get("title", ""), where)


def _question(row: _Row, passage: str, title: str, where: str) -> Question | BadExampleError:
    impossible = row.get("is_impossible", False)
    answers = [(each["text"], each["answer_start"]) for each in row.get("answers", [])]
    if impossible and answers:
        return BadExampleError(where, "it is marked as impossible and has answers", shortened(answers[0][0]))
    if not row["question"].strip():
        return BadExampleError(where, "its question is empty")
    placed = tuple((text, start if _stands(passage, text, start) else -1) for text, start in answers)
    if placed and placed[0][1] < 0:
        (text, start), *_ = answers
        there = shortened(passage[max(start, 0) : max(start, 0) + len(text)])
        found = f"{shortened(text)} at {start}, where the passage has {there}"
        return BadExampleError(where, WRONG_SPAN, found)
    return Question(row["id"], row["question"], passage, placed, impossible, title, where)


def _stands(passage: str, text: str, start: int) -> bool:
    return start >= 0 and bool(text) and passage.startswith(text, start)


FORMS: dict[str, Reader] = {"squad": read_squad}
