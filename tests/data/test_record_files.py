"""The rows of JSON, CSV and Parquet files: each with its place, and the bad ones as errors."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.data.documents import BadRecordError
from lmjax.data.record_files import csv_rows, rows

FAR = "\u2028 \x85 \x0b \x0c \x1c \x1d \x1e \u2029"  # str.splitlines cuts at each of these


def read(path):
    return [(place.removeprefix(str(path)), row) for place, row in rows(path)]


def told(path):
    """The rows, and the words of the bad ones."""
    return [(place, str(row) if isinstance(row, BadRecordError) else row) for place, row in read(path)]


def csv(text):
    return [(place, str(row) if isinstance(row, BadRecordError) else row) for place, row in csv_rows(text, "f")]


def test_csv_cells_hold_any_character_and_rows_end_where_the_standard_says():
    text = f'prompt,answer\r\n"a ""quoted"", {FAR}\nsecond line",{FAR}\r\n\r\nlast,row'
    first = {"prompt": f'a "quoted", {FAR}\nsecond line', "answer": FAR}
    assert csv(text.encode()) == [("f:2", first), ("f:5", {"prompt": "last", "answer": "row"})]


def test_a_long_csv_cell_is_read():
    assert csv(b"text\n" + b"x" * 300_000 + b"\n") == [("f:2", {"text": "x" * 300_000})]


def test_bad_csv_rows_are_told_with_their_line_and_the_rest_is_read():
    text = b'\xef\xbb\xbfa,b\n1,2\n1\n1,2,3\ncaf\xe9,2\n"x"y,2\n"two\nlines",2\nlast,2\n"open,2\n3,4\n'
    assert csv(text) == [
        ("f:2", {"a": "1", "b": "2"}),
        ("f:3", "expected 2 cells as in the header, found 1"),
        ("f:4", "expected 2 cells as in the header, found 3"),
        ("f:5", "byte 0xe9 is not UTF-8"),
        ("f:6", "malformed CSV (',' expected after '\"')"),
        ("f:7", {"a": "two\nlines", "b": "2"}),
        ("f:9", {"a": "last", "b": "2"}),
        ("f:10", "malformed CSV (unexpected end of data)"),
    ]


@pytest.mark.parametrize("text", [b"a,a\n1,2\n", b"caf\xe9\nx\n"])
def test_a_csv_header_that_would_lose_a_column_is_refused(text):
    with pytest.raises(BadRecordError, match="f:1: expected a header of different names in UTF-8"):
        csv(text)


RECORDS = [{"text": f"a {FAR} {number}", "n": number} for number in range(3)]


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in RECORDS), [":1", ":2", ":3"]),
        ("lines.json", "\r\n\r\n".join(map(json.dumps, RECORDS)), [":1", ":3", ":5"]),
        ("list.json", json.dumps(RECORDS), [": record 1", ": record 2", ": record 3"]),
        ("pretty.json", "\ufeff \n" + json.dumps(RECORDS, indent=1), [": record 1", ": record 2", ": record 3"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_json_is_read_as_lines_or_as_a_list_whatever_its_name(tmp_path, name, text, places, encoding):
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(text.encode(encoding)))
    assert read(path) == list(zip(places, RECORDS, strict=True))


def test_one_object_is_one_record(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS[0], indent=2))
    assert read(path) == [(": record 1", RECORDS[0])]


def test_bad_json_lines_are_told_one_by_one(tmp_path):
    path = tmp_path / "a.json"
    number = b'{"n": ' + b"7" * 5000 + b"}"
    path.write_bytes(b'{"a": "caf\xe9"}\n{"a": 1}\n[1]\n{"a": \n' + number + b"\n" + b"[" * 100_000)
    places, words = zip(*told(path), strict=True)
    assert places == (":1", ":2", ":3", ":4", ":5", ":6")
    assert words[:3] == ("byte 0xe9 is not UTF-8", {"a": 1}, "expected a JSON object, found list")
    assert words[3].startswith("malformed JSON (Expecting value")
    assert words[4].startswith("malformed JSON (Exceeds the limit (4300 digits)")
    assert words[5] == "malformed JSON (nested too deeply)"


@pytest.mark.parametrize(
    ("text", "words"),
    [(b'[{"a": 1},\n{"a"}]', r"a\.json:2: expected a list"), (b"3", "found int"), (b'["\xe9"]', "0xe9 is not UTF-8")],
)
def test_a_json_file_that_is_no_list_of_objects_is_named(tmp_path, text, words):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(BadRecordError, match=words):
        list(rows(tmp_path / "a.json"))


def test_parquet_rows_have_every_text_type_and_damage_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    texts = ["one", "zw\u00f6lf"]
    types = {"s": pa.string(), "l": pa.large_string(), "v": pa.string_view()}
    columns = {name: pa.array(texts, kind) for name, kind in types.items()}
    broken = pa.array([b"b", b"\xff"]).view(pa.string())
    pq.write_table(pa.table(columns | {"d": columns["s"].dictionary_encode(), "x": broken}), path)
    first, second = told(path)
    assert first == (":1", dict.fromkeys("slvd", "one") | {"x": "b"})
    assert second[0] == ":2" and "column 'x' cannot be read" in second[1]
    raw = bytearray(path.read_bytes())
    raw[4:40] = bytes(36)
    path.write_bytes(raw)
    with pytest.raises(BadRecordError, match=r"a\.parquet: cannot be read as Parquet .*; a damaged file"):
        list(rows(path))
