"""Sets whose answers the model writes: GSM8K, SQuAD 2.0, translation and summaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmjax.evaluate.questions import OpenQuestion, QuestionSet, Writing
from lmjax.evaluate.sets.records import records
from lmjax.evaluate.text_marks import UNANSWERABLE, mark_number, mark_overlap, mark_squad
from lmjax.files import read_json

_PAIRS = "instructgpt_samples/fr_en_dev.csv"
_LINE = Writing(tokens=100, stop=("\n",), mark=mark_overlap)


def read_gsm8k(path: Path) -> Iterator[OpenQuestion | str]:
    """Cobbe et al. 2021, asked as lm-evaluation-harness does: the steps, and the number after ####."""
    for row in records(path):
        _, marked, number = row["answer"].rpartition("####")
        if not marked:
            yield "its answer has no number after ####"
        else:
            asked = f"Question: {row['question']}\nAnswer:"
            yield OpenQuestion(asked, f" {row['answer']}", (number.strip(),))


def read_squad_v2(path: Path) -> Iterator[OpenQuestion | str]:
    """Rajpurkar et al. 2018, as in GPT-3, Figure G.28; a question without an answer is "unanswerable"."""
    for article in read_json(path)["data"]:
        title = article["title"].replace("_", " ")
        for paragraph in article["paragraphs"]:
            for row in paragraph["qas"]:
                asked = f"Title: {title}\n\nBackground: {paragraph['context']}\n\nQ: {row['question']}\n\nA:"
                texts = tuple(answer["text"] for answer in row["answers"])
                none = row["is_impossible"] or not texts
                target = UNANSWERABLE if none else texts[0]
                group = "without_answer" if none else "with_answer"
                yield OpenQuestion(asked, f" {target}", () if none else texts, group)


def read_fr_en(path: Path) -> Iterator[OpenQuestion | str]:
    """French, " =", English (GPT-2, section 3.7; GPT-3, Figure G.39)."""
    return (OpenQuestion(f"{row['fr']} =", f" {row['en']}", (row["en"],)) for row in records(path))


def read_en_fr(path: Path) -> Iterator[OpenQuestion | str]:
    """English, " =>", French below the name of the task (GPT-3, Figure 2.1)."""
    return (OpenQuestion(f"{row['en']} =>", f" {row['fr']}", (row["fr"],)) for row in records(path))


def read_tldr(path: Path) -> Iterator[OpenQuestion | str]:
    """A text and "TL;DR:" (GPT-2, section 3.6). The file has a line for each model's summary; a text is asked once."""
    seen = set()
    for row in records(path):
        if row["context"] in seen:
            yield "its text is that of an earlier line"
        else:
            seen.add(row["context"])
            yield OpenQuestion(row["context"], f" {row['ref_text']}", (row["ref_text"],))


SETS = {
    "gsm8k": QuestionSet("gsm8k/gsm8k_train_600.jsonl", read_gsm8k, writing=Writing(256, ("Question:",), mark_number)),
    "squad_v2": QuestionSet("squad_v2/squad2_dev.json", read_squad_v2, writing=Writing(32, ("\n",), mark_squad)),
    "fr_en": QuestionSet(_PAIRS, read_fr_en, writing=_LINE, between="\n"),
    "en_fr": QuestionSet(_PAIRS, read_en_fr, writing=_LINE, between="\n", description="Translate English to French:"),
    "tldr": QuestionSet("instructgpt_samples/tldr_dev.csv", read_tldr, writing=_LINE),
}
