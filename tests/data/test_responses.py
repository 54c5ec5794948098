"""Responses to be scored: every answer of a record is read, good or bad, whatever shape the record has."""

import json

import numpy as np
import pytest

from lmjax.data.conversation_files import read_records
from lmjax.data.conversation_rows import open_rows
from lmjax.data.conversations import Record, Turn
from lmjax.errors import UserError
from lmjax.settings import DialogueSettings, DialogueSourceSettings
from lmjax.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()
Q = (Turn("user", "q"),)
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER_CHAT = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "b"}]
TREE = {
    "role": "prompter",
    "text": "q",
    "replies": [
        {"role": "assistant", "text": "unranked", "replies": []},
        {"role": "assistant", "text": "gone", "deleted": True, "replies": []},
        {
            "role": "assistant",
            "text": "a",
            "rank": 0,
            "replies": [
                {"role": "prompter", "text": "and?", "replies": [{"role": "assistant", "text": "b", "rank": 0}]}
            ],
        },
    ],
}


def source(tmp_path, rows, **changes):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DialogueSourceSettings(path=str(path), **changes)


def responses(*answers):
    return [Record(Q, (answer,)) for answer in answers]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, responses("a")),
        ({"prompt": "q", "completion": "a", "label": False}, [Record(Q, ("a",), reward=0.0)]),
        ({"prompt": "q", "completion": "a", "label": True}, [Record(Q, ("a",), reward=1.0)]),
        ({"prompt": "q", "response": "a", "reward": -0.5}, [Record(Q, ("a",), reward=-0.5)]),
        ({"messages": CHAT, "score": "2.5"}, [Record(Q, ("a",), reward=2.5)]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, responses("a", "b")),
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, responses("same", "same")),
        ({"prompt": "q", "rejected": "b"}, responses("b")),
        ({"chosen": CHAT, "rejected": OTHER_CHAT}, [*responses("a"), Record((Turn("user", "other"),), ("b",))]),
        ({"prompt": "q", "answers": ["a", "b"]}, responses("a", "b")),
        ({"prompt": "q", "answers": ["a"]}, responses("a")),
        ({"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]}, responses("a", "b")),
        (
            {"prompt": "q", "answers": ["a", "b"], "scores": [3, -1]},
            [Record(Q, ("a",), reward=3.0), Record(Q, ("b",), reward=-1.0)],
        ),
        ({"instruction": "q", "instances": [{"output": "a"}, {"output": "b"}]}, responses("a", "b")),
        (
            {"prompt": TREE},
            [*responses("a", "unranked"), Record((*Q, Turn("assistant", "a"), Turn("user", "and?")), ("b",))],
        ),
    ],
)
def test_every_answer_of_a_record_is_a_response_without_ranks_being_needed(tmp_path, row, expected):
    assert read_records(source(tmp_path, [row]), "response").records == expected


def test_records_of_one_file_may_have_different_shapes(tmp_path):
    rows = [
        {"prompt": "q", "answer": "a"},
        {"prompt": "q", "chosen": "b", "rejected": "c"},
        {"prompt": "q", "completion": "d", "label": False},
    ]
    records = read_records(source(tmp_path, rows), "response").records
    assert [record.answers for record in records] == [("a",), ("b",), ("c",), ("d",)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "answer": "a", "reward": float("nan")}, "expected a finite number"),
        ({"prompt": "q", "answer": "a", "reward": "good"}, "expected a number"),
        ({"prompt": "q", "answers": ["a", "b"], "rewards": [1]}, "2 answers and 1 rewards: expected as many"),
        ({"prompt": "q"}, "no answer in its fields 'prompt'"),
    ],
)
def test_a_bad_response_is_an_error_that_says_how_to_leave_it_out(tmp_path, row, message):
    rows = [{"prompt": "q", "answer": "a"}, row]
    with pytest.raises(UserError, match=rf"jsonl:2: expected a response: .*{message}.*; fix it, .*--skip-bad of lmjax"):
        read_records(source(tmp_path, rows), "response")
    records, skipped, _ = read_records(source(tmp_path, rows, on_bad_record="skip"), "response")
    assert records == responses("a") and len(skipped) == 1


def test_each_response_has_a_row_of_its_own_that_ends_with_end_of_text(tmp_path):
    rows = [{"prompt": "q", "answers": ["a", "longer"]}, {"prompt": "q", "answer": "b" * 99}]
    made, counts, kept = open_rows(source(tmp_path, rows), DialogueSettings(sequence_length=40), BYTES, "response")
    batch = made.batch(np.arange(3))
    assert batch["tokens"].shape == (3, 1, 40)
    texts = [f"User: q\nAssistant: {record.answers[0]}" for record in kept]
    for row, text in zip(range(3), texts, strict=True):
        own = batch["tokens"][row, 0][batch["segments"][row, 0] == 1]
        assert own.tolist() == [*BYTES.encode(text), BYTES.eos_id][-40:]
    assert (counts.records, counts.cut, counts.left_out) == (3, 1, 0)
