"""Sets that ask of a text whether something is so: BoolQ, RTE and SST-2, answered by one of two words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmjax.evaluate.questions import Question, QuestionSet
from lmjax.evaluate.sets.records import records, tabbed


def read_boolq(path: Path) -> Iterator[Question | str]:
    """Clark et al. 2019, as in GPT-3, Figure G.29."""
    for row in records(path):
        asked = f"{row['passage']}\nquestion: {row['question']}?\nanswer:"
        if row["answer"] not in (True, False):
            yield f"the answer is {row['answer']!r}, expected true or false"
        else:
            yield Question(asked, (" yes", " no"), 0 if row["answer"] else 1, bare="answer:")


def read_rte(path: Path) -> Iterator[Question | str]:
    """Dagan et al. 2006 in the form of SuperGLUE, as in GPT-3, Figure G.31. The file is the training part."""
    for row in records(path):
        if row["label"] not in (labels := ("entailment", "not_entailment")):
            yield f"the label is {row['label']!r}, expected {' or '.join(labels)}"
        else:
            asked = f"{row['premise']}\nquestion: {row['hypothesis']} True or False?\nanswer:"
            yield Question(asked, (" True", " False"), labels.index(row["label"]), bare="answer:")


def read_sst2(path: Path) -> Iterator[Question | str]:
    """Socher et al. 2013, asked as lm-evaluation-harness does."""
    for cells in tabbed(path):
        if len(cells) != 2 or cells[1] not in ("0", "1"):
            yield f"{cells[1:]} follow the sentence, expected 0 or 1 after a tab"
        else:
            asked = f"{cells[0]}\nQuestion: Is this sentence positive or negative?\nAnswer:"
            yield Question(asked, (" negative", " positive"), int(cells[1]), bare="Answer:")


SETS = {
    "boolq": QuestionSet("boolq/boolq_dev.jsonl", read_boolq),
    "rte": QuestionSet("rte/train.csv", read_rte),
    "sst2": QuestionSet("sst2/dev.tsv", read_sst2, pool="sst2/train.tsv"),
}
