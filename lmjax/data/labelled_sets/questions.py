"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and sets in their JSON, such as CMRC 2018 and XQuAD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, cast

from lmjax.data.labelled import BadExampleError, Question, Reader
from lmjax.data.labelled_sets import reading
from lmjax.data.open_files import utf8_of
from lmjax.data.record_files import rows
from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text
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
    example. Further answers are references alone; one that is elsewhere has the place -1. A question is impossible
    where `is_impossible` says so, or where its list of answers is empty and nothing is said; without both it is not
    labelled.

    Raises UserError for a file that is not of SQuAD's form.
    """
    contents = decode_json(decode_text(bytes(utf8_of(path)[:]), path), path, _File, "use a file in SQuAD's form")
    read = (
        (f"{path}: question {row['id']}", (row, paragraph["context"], article.get("title", "")))
        for article in contents["data"]
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    )
    return reading.examples(read, _question_once())


def read_questions(path: Path, settings: LabelledSettings) -> Iterator[Question | BadExampleError]:
    """Records with "question", "context" or "passage", and as in SQuAD "id", "title", "answers" and "is_impossible".

    The answers are a list of SQuAD's, or its lists of "text" and of "answer_start", as Hugging Face has them.
    """
    once = _question_once()

    def question(record: dict[str, Any], where: str) -> Question:
        passage = reading.text(record, "passage" if "passage" in record else "context", where)
        answers = record.get("answers")
        if isinstance(answers, dict):
            columns = [each if isinstance(each, list) else [] for each in map(answers.get, ("text", "answer_start"))]
            answers = [{"text": text, "answer_start": start} for text, start in zip(*columns, strict=False)]
        row = {"id": where.rpartition(":")[2].strip()} | record | {"answers": answers}
        if answers is None:
            del row["answers"]
        try:
            check_form(row, _Row, where)
        except UserError as error:
            raise BadExampleError(where, "a field has another type", str(error).removeprefix(f"{where}: ")) from None
        return once((cast(_Row, row), passage, str(record.get("title", ""))), where)

    return reading.examples(rows(path), question)


def _question_once() -> Callable[[tuple[_Row, str, str], str], Question]:
    """`_question`, which refuses an id that an earlier question had."""
    seen: set[str] = set()

    def question(read: tuple[_Row, str, str], where: str) -> Question:
        if read[0]["id"] in seen:
            raise BadExampleError(where, "an earlier question has its id")
        seen.add(read[0]["id"])
        return _question(*read, where)

    return question


def _question(row: _Row, passage: str, title: str, where: str) -> Question:
    answers = [(each["text"], each["answer_start"]) for each in row.get("answers", [])]
    impossible = row.get("is_impossible", "answers" in row and not answers)
    if impossible and answers:
        raise BadExampleError(where, "it is marked as impossible and has answers", shortened(answers[0][0]))
    for name, text in (("its question", row["question"]), ("its passage", passage)):
        if not reading.checked_text(text, name, where).strip():
            raise BadExampleError(where, f"{name} is empty")
    placed = tuple((text, start if _stands(passage, text, start) else -1) for text, start in answers)
    if placed and placed[0][1] < 0:
        (text, start), *_ = answers
        there = shortened(passage[max(start, 0) : max(start, 0) + len(text)])
        raise BadExampleError(where, WRONG_SPAN, f"{shortened(text)} at {start}, where the passage has {there}")
    return Question(row["id"], row["question"], passage, placed, impossible, title, where)


def _stands(passage: str, text: str, start: int) -> bool:
    return start >= 0 and bool(text) and passage.startswith(text, start)


FORMS: dict[str, Reader] = {"squad": read_squad, "questions": read_questions}
