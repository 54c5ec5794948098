"""Sets whose choices are endings of a text: HellaSwag, PIQA, COPA and its Chinese translation."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmjax.data.labelled_sets.choices import copa_items
from lmjax.errors import UserError
from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import records
from lmjax.files import read_text


def read_hellaswag(path: Path) -> Iterator[Question | str]:
    """Zellers et al. 2019: an ending follows `ctx` after a blank."""
    for row in records(path):
        yield Question(row["ctx"], tuple(f" {ending}" for ending in row["endings"]), int(row["label"]))


def read_piqa(path: Path) -> Iterator[Question | str]:
    """Bisk et al. 2020, asked as lm-evaluation-harness does; the answers are in a file of digits beside it."""
    labels = path.with_name(path.name.replace(".jsonl", "_labels.lst"))
    golds = read_text(labels).split()
    goals = list(records(path))
    if len(golds) != len(goals):
        raise UserError(
            f"{labels}: {len(golds)} labels for {len(goals)} questions of {path.name}; take both of one set"
        )
    for row, gold in zip(goals, golds, strict=True):
        answers = (f" {row['sol1']}", f" {row['sol2']}")
        yield Question(f"Question: {row['goal']}\nAnswer:", answers, int(gold), bare="Answer:")


def read_copa(path: Path) -> Iterator[Question | str]:
    """Roemmele et al. 2011: the premise, "because" or "therefore", the alternative (GPT-3, Figure G.5)."""
    for _, item in copa_items(path):
        joint = {"cause": "because", "effect": "therefore"}.get(item.asks_for, "")
        if not joint or item.right not in ("1", "2"):
            yield f"it asks for {item.asks_for!r}, and {item.right!r} is right; expected cause or effect, and 1 or 2"
        else:
            answers = tuple(f" {each[:1].lower()}{each[1:]}" if each else "" for each in item.alternatives)
            yield Question(f"{item.premise.removesuffix('.')} {joint}", answers, int(item.right) - 1)


def read_xcopa_zh(path: Path) -> Iterator[Question | str]:
    """Ponti et al. 2020, in Chinese: as COPA, with a comma before the connective and no blank after it."""
    for row in records(path):
        joint = {"cause": "因为", "effect": "所以"}.get(row["question"])
        if joint is None:
            yield f"it asks for {row['question']!r}, expected cause or effect"
        else:
            premise = row["premise"].strip().removesuffix("。")
            answers = (row["choice1"].strip(), row["choice2"].strip())
            yield Question(f"{premise}，{joint}", answers, int(row["label"]))


SETS = {
    "hellaswag": QuestionSet("hellaswag/hellaswag_400.jsonl", read_hellaswag),
    "piqa": QuestionSet("piqa/piqa_dev.jsonl", read_piqa),
    "copa": QuestionSet("copa/copa-dev.xml", read_copa),
    "xcopa_zh": QuestionSet("xcopa_zh/val.zh.jsonl", read_xcopa_zh),
}
