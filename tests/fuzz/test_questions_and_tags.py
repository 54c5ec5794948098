"""Damaged files of questions and of tagged words: each gives rows, or an error that can be read."""

import json

import numpy as np
import pytest

from lmjax.data.frames import encoder_frame
from lmjax.data.labelled_sets import read_examples
from lmjax.data.question_windows import question_rows
from lmjax.data.tagged_rows import tagged_rows
from lmjax.settings import LabelledSettings
from lmjax.tokenizers.wordpiece import wordpiece

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

TOKENIZER = wordpiece(["[UNK]", "[CLS]", "[SEP]", "a", "b", "##c"], lowercase=True)
FRAME = encoder_frame(TOKENIZER)
ROW = {"id": "q1", "question": "a?", "answers": [{"text": "b", "answer_start": 2}], "is_impossible": False}
NONE = {"id": "q2", "question": "b", "answers": [], "is_impossible": True}
SQUAD = {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": [ROW, NONE]}]}]}
RECORDS = [ROW | {"context": "a b c"}, NONE | {"passage": "x", "answers": {"text": [], "answer_start": []}}]
TAGGED = [{"words": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"]}]
CONLL = b"-DOCSTART- O\n\na B-X\nb I-X\n\nc O\na\tO\n"


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(("form", "text"), [("squad", json.dumps(SQUAD)), ("questions", lines(RECORDS))])
@pytest.mark.parametrize("bad", ["error", "skip"])
def test_damaged_questions(form, text, bad, tmp_path):
    def read():
        settings = LabelledSettings(path=str(tmp_path / "file.json"), form=form, on_bad_record=bad)
        rows = question_rows(read_examples(settings).items, TOKENIZER, FRAME, 12, 4, question_length=5)
        rows.batch(np.arange(len(rows)))

    survives(written(tmp_path / "file.json", read), lambda rng: damaged_json(text, rng), 400, 1, always="either")


@pytest.mark.parametrize(
    ("form", "bad"), [("conll", "error"), ("conll", "skip"), ("weibo", "skip"), ("tagged", "skip")]
)
def test_damaged_tagged_words(form, bad, tmp_path):
    def read():
        settings = LabelledSettings(path=str(tmp_path / "file.jsonl"), form=form, on_bad_record=bad)
        found = read_examples(settings).items
        tags = sorted({tag for each in found for tag in each.tags or ()})
        rows = tagged_rows(found, TOKENIZER, FRAME, tags, 6, 2)
        rows.batch(np.arange(len(rows)))

    content = {"conll": CONLL, "weibo": "口0\tO\n腔1\tB-X\n\n溃0\tO\n".encode()}.get(form)
    make = (lambda rng: damaged_bytes(content, rng)) if content else (lambda rng: damaged_json(lines(TAGGED), rng))
    survives(written(tmp_path / "file.jsonl", read), make, 400, 2, always="either")
