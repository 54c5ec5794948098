"""Damaged files of labelled texts and choices: each gives rows, or an error that can be read."""

import json

import numpy as np
import pytest

from lmjax.data.frames import encoder_frame
from lmjax.data.labelled import Choices
from lmjax.data.labelled_rows import choice_rows, class_numbers, classes_of, scores_of, text_rows
from lmjax.data.labelled_sets import read_examples
from lmjax.data.ragged_rows import RaggedRows
from lmjax.settings import LabelledSettings
from lmjax.tokenizers.wordpiece import wordpiece

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

TOKENIZER = wordpiece(["[UNK]", "[CLS]", "[SEP]", "a", "b", "##c"], lowercase=True)
FRAME = encoder_frame(TOKENIZER)
GLUE = "index\tsentence1\tsentence2\tlabel\n0\ta b\tb\tentailment\n1\tb\ta \xe9\tnot_entailment\n".encode()
PAIR = {"sentence1": "a", "sentence2": "b\u8f7c", "label": "1"}
TARGET = {"span1_index": 0, "span1_text": "a", "span2_index": 2, "span2_text": "b"}
COPA = '<copa><item id="1" asks-for="cause" most-plausible-alternative="1"><p>a</p><a1>b</a1><a2>c</a2></item></copa>'
# A form, the ending of its file, and what is damaged: bytes, or the values of JSON lines.
FILES = [
    ("glue_rte", "tsv", GLUE),
    ("sst2", "tsv", b"a b\t1\nb\t0\n"),
    ("cola", "tsv", b"x\t1\t\ta b\nx\t0\t*\tb\n"),
    ("stsb", "csv", b'a,"b, ""a""",2.5\nb,b,5\n'),
    ("rte", "csv", b'premise,hypothesis,label\na,"b\n",entailment\n'),
    ("records", "jsonl", [PAIR, PAIR | {"label": 2.5}, PAIR | {"label": True}]),
    ("bustm", "json", [PAIR, PAIR | {"label": "0"}]),
    ("cluewsc", "json", [{"text": "a b", "target": TARGET, "label": "true"}]),
    ("swag", "jsonl", [{"startphrase": "a", "choices": ["a", "b"], "answer": 1}]),
    ("swag", "csv", b"startphrase,ending0,ending1,ending2,ending3,label\na,b,c,d,e,3\n"),
    ("hellaswag", "jsonl", [{"ctx": "a", "endings": ["a", "b"], "label": 1}]),
    ("codah", "tsv", b"o\ta\tb\tc\td\te\t1\n"),
    ("copa", "xml", COPA.encode()),
]


@pytest.mark.parametrize(("form", "ending", "content"), FILES, ids=[f"{form}-{ending}" for form, ending, _ in FILES])
@pytest.mark.parametrize("bad", ["error", "skip"])
def test_damaged_texts_and_choices(form, ending, content, bad, tmp_path):
    def read():
        settings = LabelledSettings(path=str(tmp_path / f"file.{ending}"), form=form, on_bad_record=bad)
        found = read_examples(settings).items
        if isinstance(found[0], Choices):
            rows, options = choice_rows(found, TOKENIZER, FRAME, 8)
            made = RaggedRows(rows.texts, 8, {}, options=options)
        else:
            labelled = [each for each in found if each.label is not None]
            scores_of(labelled) if form in ("stsb", "records") else class_numbers(labelled, classes_of(labelled))
            made = RaggedRows(text_rows(found, TOKENIZER, FRAME, 8, "windows", 1).texts, 8, {}, entries=6)
        made.batch(np.arange(len(made)))

    if isinstance(content, bytes):
        survives(
            written(tmp_path / f"file.{ending}", read), lambda rng: damaged_bytes(content, rng), 300, 1, always="either"
        )
    else:
        text = "".join(json.dumps(row) + "\n" for row in content)
        survives(
            written(tmp_path / f"file.{ending}", read), lambda rng: damaged_json(text, rng), 300, 2, always="either"
        )
