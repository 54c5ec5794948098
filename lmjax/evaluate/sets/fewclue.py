"""FewCLUE (Xu et al. 2021): five Chinese sets of classification. No blank stands before a choice.

FewCLUE's paper gives no prompts for a causal model; these follow OpenCompass's where it has Chinese ones (eprstmt,
tnews, ocnli, bustm), with one context for all choices.
"""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmjax.data.labelled_sets.texts import TOPICS
from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import records

Row = dict[str, Any]


def _eprstmt(row: Row) -> str:
    return f"内容：“{row['sentence']}”。情绪分类："


def _tnews(row: Row) -> str:
    return f"以下内容属于什么新闻：{row['sentence']}。\n答："


def _ocnli(row: Row) -> str:
    return f"阅读文章：{row['sentence1']}\n根据上文，回答如下问题：{row['sentence2']}？\n答："


def _bustm(row: Row) -> str:
    return f"{row['sentence1']}。\n{row['sentence2']}。\n两句话说的"


def _cluewsc(row: Row) -> str:
    target = row["target"]
    return f"{row['text']}\n上文中的“{target['span2_text']}”指的是“{target['span1_text']}”吗？\n答："


def _set(name: str, context: Callable[[Row], str], answers: dict[str, str]) -> QuestionSet:
    """The set `name`, whose labels have these answers."""
    labels = list(answers)

    def read(path: Path) -> Iterator[Question | str]:
        for row in records(path):
            if (label := str(row["label"])) not in answers:
                yield f"the label is {label!r}, expected one of {', '.join(labels)}"
            else:
                yield Question(context(row), tuple(answers.values()), labels.index(label))

    return QuestionSet(f"fewclue/{name}_dev_0.json", read, pool=f"fewclue/{name}_train_0.json")


SETS = {
    "eprstmt": _set("eprstmt", _eprstmt, {"Negative": "消极", "Positive": "积极"}),
    "tnews": _set("tnews", _tnews, TOPICS),
    "ocnli": _set("ocnli", _ocnli, {"contradiction": "错", "entailment": "对", "neutral": "可能"}),
    "bustm": _set("bustm", _bustm, {"0": "毫不相关", "1": "一个意思"}),
    "cluewsc": _set("cluewsc", _cluewsc, {"false": "不是", "true": "是"}),
}
