"""Sources of text in odd files: compressed, in other encodings, JSON lists, CSV, every Arrow type of text, damaged."""

import bz2
import gzip
import json
import lzma
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.data.documents import BadRecordError
from lmjax.data.sources import open_source
from lmjax.errors import UserError
from lmjax.settings import SourceSettings
from tests.data.test_open_files import zstd

TEXTS = ["one, \u2028 \x85 \x0b \x0c \x1c \u2029 end", "zw\u00f6lf", 'say "yes"\nnext line', ""]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS)
CSV = 'id,text\r\n1,"' + '"\r\n2,"'.join(text.replace('"', '""') for text in TEXTS) + '"\r\n'


def source(path, **settings):
    return open_source(SourceSettings(path=str(path), **settings))


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
CONTENTS = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "list.json": json.dumps([{"text": text} for text in TEXTS], indent=1),
    "cells.csv": CSV,
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_records_are_the_same_in_every_file_compression_and_encoding(tmp_path, name, suffix, encoding):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](CONTENTS[name].encode(encoding)))
    documents = source(path)
    assert [documents[i] for i in (2, 0, 3, 1)] == [TEXTS[i] for i in (2, 0, 3, 1)]
    assert len(documents) == 4 and pickle.loads(pickle.dumps(documents))[2] == TEXTS[2]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_plain_text_is_read_from_every_compression(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("one\nzw\u00f6lf \u2028\n".encode()))
    assert list(source(path, documents="line")) == ["one", "zw\u00f6lf \u2028"]


def test_files_of_records_are_not_read_as_plain_text(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl: source\.kind = 'text' .* expected 'jsonl'"):
        source(tmp_path / "a.jsonl", kind="text")


def test_a_folder_says_what_it_leaves_out(tmp_path):
    files = ("a.jsonl", "._a.jsonl", "README.md", ".ipynb_checkpoints/a-checkpoint.jsonl", "empty.jsonl")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "one"}' if name != "empty.jsonl" else "")
    documents = source(tmp_path)
    assert list(documents) == ["one"]
    assert documents.left_out == ["2 hidden", "1 of another ending", "1 empty"]


BAD = b'{"text": "caf\xe9"}\n{"text": "fine"}\n{"text": "x", "n": ' + b"7" * 5000 + b"}\n"
BAD_CSV = b'text,n\n"caf\xe9",1\nfine,2\nx\n'
BAD_LIST = b'[{"text": 3}, {"text": "fine"}, "text"]'


@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("a.jsonl", BAD, [":1: byte 0xe9 is not UTF-8", ":3: malformed JSON (Exceeds the limit (4300 digits)"]),
        ("a.csv", BAD_CSV, [":2: byte 0xe9 is not UTF-8", ":4: expected 2 cells as in the header, found 1"]),
        ("a.json", BAD_LIST, [": record 1: field 'text' is int", ": record 3: expected a JSON object, found str"]),
    ],
)
def test_one_bad_record_is_lost_with_its_place_and_counted(tmp_path, name, data, places):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadRecordError) as error:
        list(source(path))
    assert str(error.value).startswith(f"{path}{places[0]}")
    documents = source(path, on_bad_record="skip")
    assert (list(documents), documents.skipped, len(documents)) == (["fine"], 2, 3)
    skipped = documents.read(0, 3)[1]
    assert [message.startswith(f"{path}{place}") for message, place in zip(skipped, places, strict=True)] == [True] * 2


def test_a_long_csv_cell_is_read_and_a_missing_column_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("texts,n\n" + "x" * 200_000 + ",1\n")
    assert list(source(tmp_path / "a.csv", field="texts")) == ["x" * 200_000]
    with pytest.raises(UserError, match=r"a\.csv: no column source\.field = 'text'; did you mean 'texts'"):
        source(tmp_path / "a.csv")


ARROW = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
ARROW += [pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.large_string(), pa.binary())]


@pytest.mark.parametrize("kind", ARROW, ids=str)
def test_parquet_columns_of_every_text_type_are_read(tmp_path, kind):
    column = pa.array([text.encode() if "binary" in str(kind) else text for text in TEXTS], kind)
    pq.write_table(pa.table({"a.b": column, "text": column}), tmp_path / "a.parquet")
    assert list(source(tmp_path / "a.parquet")) == TEXTS
    assert list(source(tmp_path / "a.parquet", field="a.b")) == TEXTS


def test_binary_cells_that_are_not_utf8_are_bad_records(tmp_path):
    pq.write_table(pa.table({"text": pa.array([b"fine", b"caf\xe9"], pa.binary())}), tmp_path / "a.parquet")
    documents = source(tmp_path / "a.parquet", on_bad_record="skip")
    assert (list(documents), documents.skipped) == (["fine"], 1)
    assert "a.parquet:2: field 'text' is not valid Unicode" in documents.read(1, 2)[1][0]


def test_a_damaged_parquet_page_is_told_and_its_rows_are_counted(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(20)]}), path, row_group_size=5, compression="zstd")
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    raw = bytearray(path.read_bytes())
    raw[at : at + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(BadRecordError, match=r"a\.parquet:6: .*: cannot be read as Parquet .* a damaged file"):
        list(source(path))
    documents = source(path, on_bad_record="skip")
    assert list(documents) == [f"row {i}" for i in (*range(5), *range(10, 20))]
    assert documents.skipped == 5


def test_a_row_group_of_fewer_or_more_rows_than_are_announced_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), path)
    documents = source(path)
    assert documents._column(path, 0, 3).to_pylist() == ["a", "b", "c"]
    for rows in (2, 4):
        error = documents._column(path, 0, rows)
        assert isinstance(error, BadRecordError) and f"3 rows, expected the {rows} of its metadata" in str(error)
