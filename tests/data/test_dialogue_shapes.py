"""Records of conversations in the public shapes are read by their fields; bad ones are told with their line."""

import bz2
import gzip
import json
import lzma
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.data.conversation_files import read_records
from lmjax.data.conversations import Record, Turn
from lmjax.errors import UserError
from lmjax.settings import DialogueSourceSettings
from tests.data.test_open_files import zstd


def user(text):
    return Turn("user", text)


def assistant(text):
    return Turn("assistant", text)


def written(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:"
ASKED = (user("hi"), assistant("hello"), user("more"))
SHAREGPT = [{"from": "system", "value": "S"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "thanks"}]
TREE = {
    "prompt": {
        "text": "q",
        "role": "prompter",
        "replies": [
            {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "best",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "and?",
                        "role": "prompter",
                        "replies": [{"text": "only", "role": "assistant", "rank": None, "replies": []}],
                    }
                ],
            },
            {"text": "gone", "role": "assistant", "rank": 2, "deleted": True, "replies": []},
        ],
    }
}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, (user("q"), assistant("a"))),
        ({"instruction": "q", "input": "x", "output": "a"}, (user("q\n\nx"), assistant("a"))),
        ({"instruction": "q", "context": "x", "response": "a", "category": "c"}, (user("q\n\nx"), assistant("a"))),
        ({"prompt": "q", "completion": " a "}, (user("q"), assistant("a"))),
        ({"system": "S", "question": "q", "response": "a"}, (Turn("system", "S"), user("q"), assistant("a"))),
        ({"conversations": SHAREGPT}, (Turn("system", "S"), user("q"), assistant("a"))),
        ({"messages": CHAT}, (user("q"), assistant("a"))),
        ({"messages": CHAT, "label": True}, (user("q"), assistant("a"))),
        ({"chosen": HH + " yes", "rejected": HH + " no"}, (*ASKED, assistant("yes"))),
        ({"instruction": "q", "instances": [{"input": "x", "output": "a"}]}, (user("q\n\nx"), assistant("a"))),
        (TREE, (user("q"), assistant("best"), user("and?"), assistant("only"))),
    ],
)
def test_demonstrations_are_found_by_their_fields(tmp_path, row, turns):
    records = read_records(DialogueSourceSettings(path=written(tmp_path, [row])), "demonstration").records
    assert records == [Record(turns)]


@pytest.mark.parametrize(
    ("row", "ranking"),
    [
        ({"chosen": HH + " yes", "rejected": HH + " no"}, Record(ASKED, ("yes", "no"), (0, 1))),
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, Record((user("q"),), ("yes", "no"), (0, 1))),
        (
            {"conversations": SHAREGPT[:2], "chosen": SHAREGPT[2], "rejected": {"from": "gpt", "value": "b"}},
            Record((Turn("system", "S"), user("q")), ("a", "b"), (0, 1)),
        ),
        (
            {"prompt": "q", "chosen": CHAT[:2], "rejected": [CHAT[0], {"role": "assistant", "content": "b"}]},
            Record((user("q"),), ("a", "b"), (0, 1)),
        ),
        (
            {"prompt": "q", "answers": ["a", "b", "c"], "ranks": [2, 7, 2]},
            Record((user("q"),), ("a", "b", "c"), (0, 1, 0)),
        ),
        (
            {"prompt": "q", "responses": ["a", "b", "c"], "scores": [0.5, -1, 3]},
            Record((user("q"),), ("a", "b", "c"), (1, 2, 0)),
        ),
        (TREE, Record((user("q"),), ("best", "worse"), (0, 1))),
    ],
)
def test_rankings_are_found_by_their_fields(tmp_path, row, ranking):
    records = read_records(DialogueSourceSettings(path=written(tmp_path, [row])), "ranking").records
    assert records == [ranking]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "q"}, (user("q"),)),
        ({"instruction": "q", "output": "a"}, (user("q"),)),
        ({"messages": CHAT}, (user("q"), assistant("a"), user("thanks"))),
        ({"conversations": SHAREGPT}, (Turn("system", "S"), user("q"))),
        ({"chosen": HH + " yes", "rejected": HH + " no"}, ASKED),
        (TREE, (user("q"),)),
    ],
)
def test_prompts_are_what_comes_before_the_last_answer(tmp_path, row, turns):
    assert read_records(DialogueSourceSettings(path=written(tmp_path, [row])), "prompt").records == [Record(turns)]


BAD = [
    ("demonstration", {"instruction": "q", "output": "  "}, "the answer is empty"),
    ("demonstration", {"text": "q"}, "no answer in its fields 'text'"),
    ("demonstration", {"output": "a"}, "no prompt in its fields 'output'"),
    ("demonstration", {"messages": [{"role": "robot", "content": "x"}]}, "role 'robot'"),
    ("demonstration", {"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
    ("demonstration", {"instruction": "q", "output": 3}, "'output' is int"),
    ("demonstration", "{not json\n", "malformed JSON"),
    ("demonstration", "[1, 2]\n", "expected a JSON object, found list"),
    ("ranking", {"chosen": "a", "prompt": "q"}, "needs both sides"),
    ("ranking", {"chosen": HH + " same", "rejected": HH + " same"}, "are the same"),
    ("ranking", {"chosen": HH + " a", "rejected": "\n\nHuman: other\n\nAssistant: b"}, "differ before their last"),
    ("ranking", {"prompt": "q", "answers": ["a", "b"], "ranks": [1, 1]}, "all 2 answers are ranked equal"),
    ("ranking", {"prompt": "q", "answers": ["a", "b"], "ranks": [1]}, "2 answers and 1 ranks"),
    ("ranking", {"prompt": "q", "answers": ["a", "b"]}, "no ranks or scores"),
    ("ranking", {"prompt": "q", "answers": ["a"], "ranks": [0]}, "1 answers, expected 2 or more"),
    ("answer", {"prompt": "q"}, "no answer in its fields 'prompt'"),
    ("prompt", {"prompt": " "}, "the prompt is empty"),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD)
def test_a_bad_record_is_an_error_that_names_its_line_or_a_counted_skip(tmp_path, kind, row, message):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"} if kind == "ranking" else {"prompt": "q", "answer": "a"}
    path = written(tmp_path, [good, row, good])
    with pytest.raises(UserError, match=rf"data\.jsonl:2: expected an? {kind}: .*{message}"):
        read_records(DialogueSourceSettings(path=path), kind)
    records, skipped, _ = read_records(DialogueSourceSettings(path=path, on_bad_record="skip"), kind)
    assert (len(records), len(skipped)) == (2, 1)
    assert message in skipped[0]


def test_a_source_without_any_record_of_the_kind_is_an_error(tmp_path):
    path = written(tmp_path, [{"prompt": "q", "answer": "a"}])
    with pytest.raises(UserError, match="at least one ranking, found none in 1 records, 1 of them bad"):
        read_records(DialogueSourceSettings(path=path, on_bad_record="skip"), "ranking")


def test_answers_that_are_not_to_be_imitated_are_no_demonstrations(tmp_path):
    path = written(tmp_path, [{"messages": CHAT, "label": label} for label in (False, True)])
    assert len(read_records(DialogueSourceSettings(path=path), "demonstration").records) == 1


def test_parts_of_a_source_make_up_the_whole_and_files_may_be_lists_csv_or_gzipped(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": f"a{i}"} for i in range(7)]
    path = written(tmp_path, rows)
    whole = read_records(DialogueSourceSettings(path=path), "demonstration").records
    parts = [
        read_records(DialogueSourceSettings(path=path, begin=b, end=e), "demonstration").records
        for b, e in ((0.0, 0.3), (0.3, 1.0))
    ]
    assert parts[0] + parts[1] == whole and len(whole) == 7
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "t.csv").write_text("prompt,answer\n" + "".join(f'"q{i}",a{i}\n' for i in range(7)))
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress((tmp_path / "data.jsonl").read_bytes()))
    for name in ("list.json", "t.csv", "z.jsonl.gz"):
        assert read_records(DialogueSourceSettings(path=str(tmp_path / name)), "demonstration").records == whole
    assert len(read_records(DialogueSourceSettings(path=str(tmp_path)), "demonstration").records) == 28


# ---- files ----

FAR = "\u2028 \x85 \x0c \x1c \u2029"  # str.splitlines cuts at each of these
FILES = [{"prompt": f"q {FAR} {i}", "answer": "long " * 40_000 + f"{i}"} for i in range(2)]  # above csv's own limit


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_csv(rows):
    return ("prompt,answer\r\n" + "".join(f"{row['prompt']},{row['answer']}\r\n" for row in rows)).encode()


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", as_csv(FILES)),
        ("a.csv.xz", lzma.compress(as_csv(FILES))),
        ("a.jsonl.bz2", bz2.compress(lines(FILES))),
        ("a.jsonl.zst", zstd(lines(FILES))),
        ("a.json", lines(FILES)),
        ("a.json.gz", gzip.compress(json.dumps(FILES, indent=1).encode())),
        ("a.parquet", parquet(FILES)),
        ("utf16.jsonl", lines(FILES).decode().encode("utf-16")),
    ],
)
def test_a_file_of_any_form_gives_its_records_whole(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path / name, tmp_path):
        records = read_records(DialogueSourceSettings(path=str(path)), "demonstration").records
        assert records == [Record((user(row["prompt"]), assistant(row["answer"]))) for row in FILES]


NESTED = {"prompt": {"text": "q", "role": "prompter", "replies": ["no object"]}}


@pytest.mark.parametrize(
    ("name", "data", "places", "good"),
    [
        ("a.jsonl", b'{"prompt": "caf\xe9", "answer": "a"}\n' + lines(FILES), [":1: byte 0xe9 is not UTF-8"], 2),
        ("a.jsonl", lines(FILES) + b'\n{"prompt": ' + b"7" * 5000 + b"}", [":3: malformed JSON (Exceeds"], 2),
        ("a.jsonl", lines([NESTED, *FILES]), [":1: field 'replies': a message is str"], 2),
        ("a.csv", as_csv(FILES) + b"one\r\na,b,c\r\n", [":4: expected 2 cells", ":5: expected 2 cells"], 2),
        ("a.csv", as_csv(FILES) + b"caf\xe9,b\r\n", [":4: byte 0xe9 is not UTF-8"], 2),
    ],
)
def test_a_bad_record_of_a_file_loses_itself_alone_and_is_told_with_its_line(tmp_path, name, data, places, good):
    (tmp_path / name).write_bytes(data)
    source = DialogueSourceSettings(path=str(tmp_path / name), on_bad_record="skip")
    records, skipped, _ = read_records(source, "demonstration")
    assert len(records) == good
    assert [
        message.removeprefix(source.path)[: len(place)] for message, place in zip(skipped, places, strict=True)
    ] == places
    with pytest.raises(UserError, match=re.escape(f"{name}{places[0].partition(' ')[0]} expected a demonstration")):
        read_records(DialogueSourceSettings(path=source.path), "demonstration")


def test_a_damaged_file_is_one_bad_record_where_those_are_skipped(tmp_path):
    written(tmp_path, FILES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(FILES))[:100])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: a truncated or damaged gzip file"):
        read_records(DialogueSourceSettings(path=str(tmp_path)), "demonstration")
    records, skipped, _ = read_records(
        DialogueSourceSettings(path=str(tmp_path), on_bad_record="skip"), "demonstration"
    )
    assert (len(records), len(skipped)) == (2, 1)


def test_records_inside_an_object_and_other_separators_are_told(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"prompt": "q", "answer": "a"}]}))
    with pytest.raises(UserError, match="the records seem to be in 'data': write them as a list, or one a line"):
        read_records(DialogueSourceSettings(path=str(tmp_path / "a.json")), "demonstration")
    (tmp_path / "a.csv").write_text("prompt;answer\nq;a\n")
    with pytest.raises(UserError, match="cells are expected to stand apart by commas"):
        read_records(DialogueSourceSettings(path=str(tmp_path / "a.csv")), "demonstration")


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("demonstration", {"answer": "a"}),
        ("ranking", {"chosen": "a", "rejected": "b"}),
        ("response", {"answers": ["a", "b"]}),
        ("prompt", {}),
    ],
)
def test_a_prompt_that_is_an_empty_list_is_refused(tmp_path, kind, answers):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": [], **answers}))
    with pytest.raises(UserError, match="field 'prompt': the prompt is empty"):
        read_records(DialogueSourceSettings(path=str(tmp_path / "a.jsonl")), kind)
