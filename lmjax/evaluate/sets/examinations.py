"""Examinations: ARC (Clark et al. 2018) by the text of an answer or by its letter, and MMLU (Hendrycks et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import cells

LETTERS = "ABCD"
_EASY, _EASY_POOL = "arc/arc_easy_a.csv", "arc/arc_easy_fewshot_pool.csv"
_CHALLENGE = "arc/arc_challenge_fewshot_pool.csv"  # the only published part here: the questions are their own pool
_MMLU = "The following are multiple choice questions (with answers) about {group}."


def read_arc(path: Path) -> Iterator[Question | str]:
    """By the text of the answer, as in GPT-3, Figures G.11 and G.16."""
    for row in cells(path):
        if reason := _not_four_choices(row):
            yield reason
        else:
            answers = tuple(f" {choice}" if choice else "" for choice in row[1:5])
            yield Question(f"Question: {row[0]}\nAnswer:", answers, LETTERS.index(row[5]), bare="Answer:")


def read_arc_by_letter(path: Path) -> Iterator[Question | str]:
    """By the letter of the answer, in the form of MMLU."""
    for row in cells(path):
        yield _not_four_choices(row) or by_letter(f"Question: {row[0]}", row[1:5], row[5])


def read_mmlu(path: Path) -> Iterator[Question | str]:
    """The choices with their letters, and a letter as the answer (Hendrycks et al. 2021, Figure 1)."""
    for subject, *row in cells(path):
        yield _not_four_choices(row) or by_letter(row[0].strip(), row[1:5], row[5], subject)


def by_letter(asked: str, choices: Sequence[str], letter: str, group: str = "") -> Question:
    """A question whose four choices are listed in its context with their letters, which are the answers."""
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(LETTERS, choices, strict=True))
    answers = tuple(f" {name}" for name in LETTERS)
    return Question(f"{asked}\n{listed}\nAnswer:", answers, LETTERS.index(letter), bare="Answer:", group=group)


def _not_four_choices(row: Sequence[str]) -> str:
    if len(row) != 6:
        return f"{len(row)} cells, expected a question, four choices and a letter"
    if row[5] not in tuple(LETTERS):
        return f"the answer is {row[5]!r}, expected A, B, C or D"
    empty = [number for number, choice in enumerate(row[1:5]) if not choice.strip()]
    return f"choice {empty[0]} is empty" if empty else ""


SETS = {
    "arc_easy": QuestionSet(_EASY, read_arc, pool=_EASY_POOL),
    "arc_easy_letter": QuestionSet(_EASY, read_arc_by_letter, pool=_EASY_POOL),
    "arc_challenge": QuestionSet(_CHALLENGE, read_arc),
    "arc_challenge_letter": QuestionSet(_CHALLENGE, read_arc_by_letter),
    "mmlu": QuestionSet(
        "mmlu/mmlu_val.csv", read_mmlu, pool="mmlu/mmlu_dev_5shot.csv", description=_MMLU, own_group=True
    ),
}
