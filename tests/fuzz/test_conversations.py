"""Damaged conversations: every shape of record, in every format, read as every kind; and files to be scored."""

import gzip
import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lmjax.data.conversation_files import read_records
from lmjax.runs import score
from lmjax.settings import DialogueSourceSettings, RewardModel
from lmjax.tokenizers.byte import ByteTokenizer

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

HH = "\n\nHuman: Hi\n\nAssistant: "
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TREE = {
    "text": "Hi",
    "role": "prompter",
    "replies": [
        {"text": "Hello", "role": "assistant", "rank": 0, "replies": []},
        {
            "text": "Go",
            "role": "assistant",
            "rank": 1,
            "replies": [{"text": "Why?", "role": "prompter", "replies": []}],
        },
    ],
}
RECORDS = {
    "instructions": [
        {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]]},
        {"prompt": "Hi", "response": "Hello", "system": "Be kind.", "label": True},
        {"question": "Why?", "context": "It is.", "answer": "So.", "reward": 0.5},
        {"instruction": "Add.", "instances": [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}]},
    ],
    "messages": [
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER | {"weight": 1}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "x"},
        {"messages": [{"role": "USER", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
    ],
    "pairs": [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "score_chosen": 2, "score_rejected": 1},
        {"chosen": HH + "Hello", "rejected": HH + "Go"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "Go"}]},
    ],
    "rankings": [
        {"prompt": "Hi", "answers": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": HH, "responses": ["a", "b"], "scores": [0.5, 1.5]},
        {"prompt": [USER], "answers": ["a", "b"], "ranks": [1, 0], "gold": [0.5, 0.25], "finished": [True, False]},
    ],
    "trees": [{"prompt": TREE}],
}
KINDS = ["demonstration", "answer", "ranking", "response", "prompt"]


def packed(records, form):
    """The records as bytes of a file of this form; values that a column cannot hold are written as JSON."""
    if form == "jsonl":
        return "\n".join(map(json.dumps, records)).encode()
    if form == "json":
        return json.dumps(records).encode()
    names = list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))
    table = [{name: record.get(name) for name in names} for record in records if isinstance(record, dict)]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), sink)
    return sink.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", RECORDS)
def test_conversations(tmp_path, kind, shape):
    for number, form in enumerate(("jsonl", "json")):
        text = packed(RECORDS[shape], form).decode()
        for on_bad_record in ("error", "skip"):
            path = tmp_path / f"a.{form}"
            source = DialogueSourceSettings(path=str(path), on_bad_record=on_bad_record)
            read = written(path, lambda source=source: read_records(source, kind))
            survives(read, lambda rng, text=text: damaged_json(text, rng), 30, number, always="either")


@pytest.mark.parametrize("shape", ["pairs", "rankings"])
def test_conversations_in_parquet_and_compressed(tmp_path, shape):
    """A table has one type for a column, so that a record of each shape stands alone."""
    for number, record in enumerate(RECORDS[shape]):
        for form, data in (
            ("parquet", packed([record] * 3, "parquet")),
            ("jsonl.gz", gzip.compress(packed([record], "jsonl"))),
        ):
            path = tmp_path / f"a.{form}"
            source = DialogueSourceSettings(path=str(path), on_bad_record="skip")
            read = written(path, lambda source=source: read_records(source, "ranking"))
            survives(read, lambda rng, data=data: damaged_bytes(data, rng), 50, number, always="either")


def test_conversations_in_csv(tmp_path):
    text = b'prompt,response,reward,history\nHi,Hello,0.5,[]\n"a, ""b""\nc",d,1,[]\n'
    for number, kind in enumerate(("demonstration", "response")):
        source = DialogueSourceSettings(path=str(tmp_path / "a.csv"), on_bad_record="skip")
        read = written(tmp_path / "a.csv", lambda source=source, kind=kind: read_records(source, kind))
        survives(read, lambda rng: damaged_bytes(text, rng), 300, number)


def test_a_field_map(tmp_path):
    record = {"inputs": "Hi", "targets": "Hello", "note": 1}
    source = DialogueSourceSettings(
        path=str(tmp_path / "a.jsonl"), fields={"prompt": "inputs", "answer": "targets"}, ignore=("note",)
    )
    read = written(tmp_path / "a.jsonl", lambda: read_records(source, "demonstration"))
    survives(read, lambda rng: damaged_json("\n".join([json.dumps(record)] * 2), rng), 300, 1)


@pytest.mark.parametrize("shape", RECORDS)
def test_files_that_are_scored(tmp_path, monkeypatch, capsys, shape):
    """The model alone is replaced: by one whose score is 0.5."""
    start = SimpleNamespace(tokenizer=ByteTokenizer())
    monkeypatch.setattr(score, "open_scorer", lambda checkpoint: (RewardModel(start="x"), start))
    monkeypatch.setattr(score, "scores_of", lambda recipe, start, rows: (np.full(1, 0.5) for _ in range(len(rows))))
    text, path = packed(RECORDS[shape], "jsonl").decode(), tmp_path / "a.jsonl"
    for skip_bad, as_json in ((True, False), (False, True)):
        options = {"as_json": as_json, "skip_bad": skip_bad}

        def scored(options=options):
            score.print_scores(tmp_path, path, **options)
            capsys.readouterr()

        read = written(path, scored)
        survives(read, lambda rng: damaged_json(text, rng), 75, 2, always="either")
