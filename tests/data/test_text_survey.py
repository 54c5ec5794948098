"""Own text as a person names it: every form is read, and what is none is told by path, what was found and a fix."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from lmjax.data.text_survey import bytes_of_token, survey
from lmjax.errors import ArgumentError
from lmjax.settings import SourceSettings, TokenizerSettings

LINE = "Das Wetter ist schön.\n"  # 22 characters, 23 bytes
RECORDS = [{"content": LINE, "id": str(number)} for number in range(50)]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The current folder, with text in every form."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(LINE * 50)
    (tmp_path / "notes").write_text(LINE * 50)  # no ending
    (tmp_path / "my.txt.gz").write_bytes(gzip.compress((LINE * 50).encode()))
    with pyarrow.CompressedOutputStream("my.txt.zst", "zstd") as file:
        file.write((LINE * 50).encode())
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), "my.parquet")
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "b.txt", "b.png"):
        (tmp_path / "folder" / name).write_text(LINE * 25)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "kinds", "documents"),
    [
        (["my.txt"], ["text"], 1),
        (["notes"], ["text"], 1),
        (["my.txt.gz"], ["text"], 1),
        (["my.txt.zst"], ["text"], 1),
        (["my.jsonl"], ["jsonl"], 50),
        (["my.parquet"], ["parquet"], 50),
        (["folder"], ["text", "text"], 2),
        (["folder/*.txt"], ["text", "text"], 2),
        (["folder/a.txt", "folder/b.txt"], ["text", "text"], 2),
    ],
)
def test_every_form_of_the_same_text_holds_as_much(texts, data, kinds, documents):
    found = survey(data, "content")
    assert [one.source.kind for one in found] == kinds
    assert sum(one.bytes for one in found) == 23 * 50 and all(one.exact for one in found)
    assert sum(one.documents for one in found) == documents
    assert found[-1].opening.startswith(LINE)


def test_many_files_are_one_source_of_documents(texts):
    for number in range(20):
        (texts / "folder" / f"{number}.txt").write_text(LINE)
    (found,) = survey(["folder"])
    assert (found.documents, found.bytes) == (22, 23 * 70) and found.left_out == ("1 of another ending",)


def test_a_large_source_is_sampled_over_its_whole_length(texts, monkeypatch):
    lines = [{"text": "a" * (1 + number)} for number in range(4_000)]
    (texts / "large.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    (exact,) = survey(["large.jsonl"])
    assert exact.exact and exact.bytes == 4_000 * 4_001 // 2
    monkeypatch.setattr("lmjax.data.text_survey.READ_ALL", 1_000)
    (found,) = survey(["large.jsonl"])
    assert not found.exact and found.bytes == pytest.approx(exact.bytes, rel=0.001)


@pytest.mark.parametrize(
    ("data", "content", "message"),
    [
        ([], b"", r"--data: no file is named; expected files, folders or globs, such as --data my.txt"),
        (["absent.txt"], b"", r"--data absent.txt: expected a file, a folder or a glob .* check the path"),
        (["absent.jsonl", "gone/*.txt"], b"", r"--data absent.jsonl: .*\n--data gone/\*.txt: expected a file"),
        (["bad.txt"], b"", r"--data bad.txt: is empty; expected text"),
        (["bad.jsonl"], b"", r"--data bad.jsonl: source jsonl bad.jsonl: holds no documents; give a source with text"),
        (["bad.txt"], b"\n \n", r"--data bad.txt: holds no text, but white space; expected text"),
        (
            ["bad.bin"],
            b"\x89PNG\r\n\x1a\n",
            r"bad.bin:1: byte 0x89 is not UTF-8; fix it, or leave it out by --skip-bad",
        ),
        (["bad"], b"ELF\0\0\0\1", r"--data bad: bad: holds NUL characters, as binary files do; expected text"),
        (["bad.txt.gz"], b"no gzip", r"--data bad.txt.gz: bad.txt.gz: a truncated or damaged gzip file"),
        (["bad.jsonl"], b'{"body": "x"}\n', r"bad.jsonl:1: no field 'text'; it has 'body'; choose by --field; fix it"),
        (["bad.csv"], b"body,id\nx,1\n", r"bad.csv: no column --field = 'text'; known: body, id"),
        (["mixed"], b"", r"found files of several kinds \(.csv, .txt\); name the files of one kind .*'mixed/\*.txt'"),
        (["empty"], b"", r"--data empty: expected files that end in .* found none of either; name the files"),
    ],
)
def test_what_is_no_text_is_told_with_what_to_do(texts, data, content, message):
    for folder in ("mixed", "empty"):
        (texts / folder).mkdir()
    for name in ("a.txt", "b.csv"):
        (texts / "mixed" / name).write_text("x")
    for path in data:
        if path.startswith("bad"):
            (texts / path).write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        survey(data)


def test_bad_records_are_left_out_where_it_is_asked_for(texts):
    (texts / "some.jsonl").write_text('{"text": "good"}\n{"body": "x"}\n{"text": "too"}\n')
    (found,) = survey(["some.jsonl"], skip_bad=True)
    assert found.bytes == 7 and found.source.on_bad_record == "skip"


def test_the_bytes_of_a_token_are_those_of_the_vocabulary(texts):
    source = SourceSettings("text", "my.txt")
    assert bytes_of_token([source], TokenizerSettings()) == 1.0
    trained = bytes_of_token([source], TokenizerSettings(kind="bpe", vocab_size=270))
    assert 2.0 < trained < 3.0
