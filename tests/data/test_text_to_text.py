"""Examples written as text, and the packed rows of their tokens."""

import json

import numpy as np
import pytest

from lmjax.data.labelled import BadExampleError, Choices, Labelled, Question, TaggedWords
from lmjax.data.labelled_sets import read_examples
from lmjax.data.text_to_text import as_text, encoded
from lmjax.settings import LabelledSettings, TextToTextSettings
from lmjax.tokenizers.byte import ByteTokenizer

PLAIN = TextToTextSettings()


@pytest.mark.parametrize(
    ("example", "settings", "inputs", "targets"),
    [
        (Labelled(("It rains.",), "yes", ""), {"prefix": "wet: "}, "wet: It rains.", ("yes",)),
        (Labelled(("a", "b"), 2.625, ""), {"prefix": "stsb ", "names": ("x", "y")}, "stsb x: a y: b", ("2.6",)),
        (Choices("Why?", ("no", "so"), 1, ""), {}, "choice1: no choice2: so context: Why?", ("choice2",)),
        (
            Question("1", "Who?", "I am I.", (("I", 0), ("I", 5), ("am", 2)), False, "", ""),
            {},
            "question: Who? context: I am I.",
            ("I", "am"),
        ),
        (Question("1", "Who?", "x", (), True, "", ""), {}, "question: Who? context: x", ("unanswerable",)),
    ],
)
def test_examples_are_written_as_in_the_paper(example, settings, inputs, targets):
    assert as_text(example, TextToTextSettings(**settings)) == (inputs, targets)


@pytest.mark.parametrize(
    ("example", "settings", "found"),
    [
        (Labelled(("a",), None, "f:3"), {}, "f:3: no label"),
        (Question("1", "q", "p", (), False, "", "f:4"), {}, "f:4: no label"),
        (Labelled(("a", "b"), "x", "f:5"), {"names": ("one",)}, "f:5: expected 1 texts.*2 texts"),
        (TaggedWords(("a",), ("O",), "f:6"), {}, "expected texts with a label, found TaggedWords"),
    ],
)
def test_examples_that_are_no_texts_are_refused_with_their_place(example, settings, found):
    with pytest.raises(BadExampleError, match=found):
        as_text(example, TextToTextSettings(**settings))


def test_json_lines_of_inputs_and_targets_become_packed_rows(tmp_path):
    records = [{"input": "abc", "target": "xy"}, {"input": "d" * 40, "target": "z" * 9}, {"input": "e", "target": "w"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = TextToTextSettings(LabelledSettings(str(path), fields=("input",), label="target"), prefix="to: ")
    pairs = [as_text(example, settings) for example in read_examples(settings.source).items]
    assert [pair.inputs[:6] for pair in pairs] == ["to: ab", "to: dd", "to: e"]
    tokens = encoded(pairs, ByteTokenizer(), (16, 8))
    assert tokens.cut == 2
    assert [bytes(text[:-1].tolist()).decode() for text in tokens.inputs] == ["to: abc", "to: " + "d" * 11, "to: e"]
    assert [len(text) for text in tokens.targets] == [3, 8, 2]
    assert {int(text[-1]) for text in (*tokens.inputs, *tokens.targets)} == {256}
    rows = tokens.rows((16, 8))
    assert len(rows) == 2
    batch = rows.batch(np.arange(2))
    assert batch["inputs"].shape == (2, 16) and batch["targets"].shape == (2, 8)
    assert sorted(batch["input_segments"].max(axis=1).tolist()) == [1, 2]
