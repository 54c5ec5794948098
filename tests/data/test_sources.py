"""Sources: what one document is, parts of a source, and bad input that is named or counted, never dropped."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.data.sources import BadRecordError, MemoryDocuments, open_source
from lmjax.data.text_sources import checksum, text_spans
from lmjax.errors import UserError
from lmjax.settings import SourceSettings


def texts_of(**settings):
    return list(open_source(SourceSettings(**settings)))


@pytest.fixture
def poems(tmp_path):
    path = tmp_path / "poems.txt"
    path.write_bytes("one\ntwo\n\n \t\r\nthrée\r\n  four\n\nfive".encode())
    return path


def test_a_file_is_one_document_as_it_is(poems):
    assert texts_of(kind="text", path=str(poems)) == [poems.read_bytes().decode()]


def test_lines_are_documents_without_blank_ones_and_line_ends(poems):
    assert texts_of(kind="text", path=str(poems), documents="line") == ["one", "two", "thrée", "  four", "five"]


def test_paragraphs_are_divided_by_blank_lines_and_keep_their_own_line_ends(poems):
    assert texts_of(kind="text", path=str(poems), documents="paragraph") == ["one\ntwo", "thrée\r\n  four", "five"]


@pytest.mark.parametrize("documents", ["line", "paragraph"])
@pytest.mark.parametrize(
    "data", [b"", b"\n", b"a", b"a\n", b"\na", b"\n\na\n\n\nb\n", b" a\n \n b\n", b"\r\n\r\na\r\n"]
)
def test_spans_agree_with_python_on_every_edge(data, documents):
    starts, ends = text_spans(data, documents)
    lines = [line.rstrip("\r") for line in data.decode().split("\n")]
    blocks = "\n".join("" if not line.strip() else line for line in lines).split("\n\n")
    expected = [line for line in lines if line.strip()]
    if documents == "paragraph":
        expected = [block.strip("\n") for block in blocks if block.strip("\n")]
    assert [data[s:e].decode() for s, e in zip(starts, ends, strict=True)] == expected


def test_folders_and_globs_are_read_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "c.md", "a/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"d"))
    assert texts_of(kind="text", path=str(tmp_path)) == ["a/y.txt", "a/z.txt", "b.txt", "d"]
    assert texts_of(kind="text", path=str(tmp_path / "*.[tm][xd]*")) == ["b.txt", "c.md", "d"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert texts_of(kind="text", path=str(tmp_path / "a.txt")) == ["hello"]
    assert texts_of(kind="jsonl", path=str(tmp_path / "a.jsonl")) == ["hello"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_are_read_plain_and_gzipped_in_any_order(tmp_path, name):
    texts = ["one", "zw\u00f6lf\n", "\u4e09 \U0001f600", ""]
    raw = "\n\n".join(json.dumps({"id": 1, "body": text}) for text in texts).encode() + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    source = open_source(SourceSettings(kind="jsonl", path=str(tmp_path / name), field="body"))
    assert [source[i] for i in (3, 0, 2, 1)] == [texts[i] for i in (3, 0, 2, 1)]
    assert pickle.loads(pickle.dumps(source))[2] == texts[2]  # as it travels to a worker


def test_parquet_is_read_across_files_and_row_groups(tmp_path):
    texts = [f"row {i}" for i in range(25)]
    for number, part in enumerate((texts[:18], texts[18:])):
        table = pa.table({"id": range(len(part)), "text": pa.array(part).dictionary_encode()})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    source = open_source(SourceSettings(kind="parquet", path=str(tmp_path)))
    assert len(source) == 25
    assert [source[i] for i in (24, 0, 17, 18, 6)] == [texts[i] for i in (24, 0, 17, 18, 6)]
    assert pickle.loads(pickle.dumps(source))[19] == "row 19"


TFDS_SCRIPT = """
import sys
import numpy as np
import tensorflow_datasets as tfds
class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, manager):
        return {"train": self._generate_examples(7), "test": self._generate_examples(2)}
    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": f"document {i} \u00e9", "n": i}
builder = Tiny(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
from lmjax.data.sources import open_source
from lmjax.errors import UserError
from lmjax.settings import SourceSettings
folder = str(builder.data_path)
source = open_source(SourceSettings(kind="tfds", path=folder))
assert sorted(source) == [f"document {i} \u00e9" for i in range(7)], list(source)
assert source[3] == source[3] and len(open_source(SourceSettings(kind="tfds", path=folder, split="test"))) == 2
half = SourceSettings(kind="tfds", path=folder, end=0.5)
assert list(open_source(half)) == [source[i] for i in range(round(3.5))]
assert len(open_source(SourceSettings(kind="tfds", path=folder, split="train[:3]+test"))) == 5
for wrong, word in ((dict(field="body"), "'body'"), (dict(split="dev"), "test"), (dict(path=sys.argv[1]), "info.json"),
                    (dict(path="no_such_builder"), "no_such_builder"), (dict(field="n"), "expected a string")):
    try:
        list(open_source(SourceSettings(**({"kind": "tfds", "path": folder} | wrong))))
    except UserError as error:
        assert word in str(error), error
    else:
        raise AssertionError(wrong)
assert "tensorflow" not in sys.modules
"""


def test_tfds_is_prepared_and_read_without_tensorflow(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TFDS_SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_parts_of_a_source_make_up_the_whole():
    texts = [f"{i}" for i in range(11)]
    cuts = [0.0, 0.29, 0.5, 0.9, 1.0]
    parts = [list(MemoryDocuments(texts, SourceSettings(begin=a, end=b))) for a, b in pairwise(cuts)]
    assert [len(part) for part in parts] == [3, 3, 4, 1]
    assert list(chain(*parts)) == texts


def test_a_single_document_is_cut_at_line_ends(tmp_path):
    text = "\n".join(f"line {i} é" for i in range(20))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    path = str(tmp_path / "a.txt")
    first = texts_of(kind="text", path=path, end=0.5)[0]
    second = texts_of(kind="text", path=path, begin=0.5)[0]
    assert first + second == text
    assert first.endswith("\n") and 0.5 * len(text) <= len(first) < 0.5 * len(text) + 12


def test_a_part_without_documents_or_lines_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"select none of its 3 documents"):
        MemoryDocuments(["a", "b", "c"], SourceSettings(begin=0.0, end=0.1))
    with pytest.raises(UserError, match=r"select no line"):
        list(MemoryDocuments(["only one line"], SourceSettings(begin=0.9, end=1.0)))


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_missing_path_names_itself(tmp_path, kind):
    with pytest.raises(UserError, match="nowhere"):
        open_source(SourceSettings(kind=kind, path=str(tmp_path / "nowhere")))


def test_a_folder_without_fitting_files_says_which_were_looked_for(tmp_path):
    (tmp_path / "a.rst").write_text("text")
    with pytest.raises(UserError, match=r"\.txt, \.md in this folder; .*1 of another ending"):
        open_source(SourceSettings(kind="text", path=str(tmp_path)))


@pytest.mark.parametrize("documents", ["line", "paragraph"])
def test_an_empty_corpus_is_an_error(tmp_path, documents):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"a\.txt: holds no documents"):
        open_source(SourceSettings(kind="text", path=str(tmp_path / "a.txt"), documents=documents))


BAD_LINES = {
    b'{"text": "broken}': "malformed JSON",
    b'["text"]': "expected a JSON object, found list",
    b'{"body": "other"}': "no field 'text'; it has 'body'",
    b'{"text": 3}': "field 'text' is int, expected a string",
    b'{"text": null}': "field 'text' is NoneType",
    b'{"text": "\\ud800"}': "field 'text' is not valid Unicode",
    b'{"text": "\xff"}': "byte 0xff is not UTF-8",
    b"[" * 100_000: "malformed JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_json_line_is_named_or_skipped_and_counted(tmp_path, bad):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "good"}\n\n' + bad + b'\n{"text": "too"}\n' + bad)
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(BadRecordError) as error:
        texts_of(kind="jsonl", path=path)
    assert f"{path}:4: {BAD_LINES[bad]}" in str(error.value)
    assert 'source.on_bad_record = "skip"' in str(error.value)
    source = open_source(SourceSettings(kind="jsonl", path=path, on_bad_record="skip"))
    assert (list(source), source.skipped, len(source)) == (["good", "too"], 2, 4)
    assert list(source) == ["good", "too"] and source.skipped == 2  # counted anew
    assert ":4: " in source.read(1, 2)[1][0] and ":6: " in source.read(3, 4)[1][0]


def test_broken_utf8_names_the_line_that_holds_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\nthr\xe9\xe9\nfour")
    for documents in ("file", "line", "paragraph"):
        with pytest.raises(BadRecordError, match=r"a\.txt:4: byte 0xe9 is not UTF-8"):
            texts_of(kind="text", path=str(tmp_path / "a.txt"), documents=documents)
    skipping = {"kind": "text", "path": str(tmp_path / "a.txt"), "on_bad_record": "skip"}
    assert texts_of(**skipping, documents="line") == ["one", "two", "four"]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"not gzip", lambda raw: raw[:20] + b"??" + raw[22:]]
)
def test_a_damaged_gzip_file_is_named_or_skipped_and_counted(tmp_path, damage):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}')
    raw = gzip.compress(b'{"text": "lost words"}\n' * 50)
    (tmp_path / "b.jsonl.gz").write_bytes(damage(raw))
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: a truncated or damaged gzip file"):
        open_source(SourceSettings(kind="jsonl", path=str(tmp_path)))
    source = open_source(SourceSettings(kind="jsonl", path=str(tmp_path), on_bad_record="skip"))
    assert (list(source), source.skipped) == (["good"], 1)


def test_bad_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet"):
        open_source(SourceSettings(kind="parquet", path=str(path)))
    pq.write_table(pa.table({"texts": ["a"], "n": [1]}), path)
    with pytest.raises(UserError, match=r"no column source\.field = 'text'; did you mean 'texts'"):
        open_source(SourceSettings(kind="parquet", path=str(path)))
    with pytest.raises(UserError, match=r"column 'n' is int64, expected string"):
        open_source(SourceSettings(kind="parquet", path=str(path), field="n"))


def test_a_bad_parquet_row_is_named_or_skipped_and_counted(tmp_path):
    path = str(tmp_path / "a.parquet")
    broken = pa.array([b"b", b"\xff"]).cast(pa.binary()).view(pa.string())
    column = pa.chunked_array([pa.array(["a", None]), broken])
    pq.write_table(pa.table({"text": column}), path, row_group_size=3)
    source = open_source(SourceSettings(kind="parquet", path=path, on_bad_record="skip"))
    assert (list(source), source.skipped) == (["a", "b"], 2)
    strict = open_source(SourceSettings(kind="parquet", path=path))
    with pytest.raises(BadRecordError, match=r"a\.parquet:2: field 'text' is NoneType"):
        strict[1]
    with pytest.raises(BadRecordError, match=r"a\.parquet:4: field 'text' is not valid Unicode"):
        strict[3]


def test_shards_are_no_source_of_text():
    with pytest.raises(UserError, match="shards"):
        open_source(SourceSettings(kind="shards", path="somewhere"))


def test_identity_changes_with_contents_and_reading_but_not_with_the_folder(tmp_path):
    for folder, text in (("a", "hello\n"), ("b", "hello\n"), ("c", "hallo\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(text)
    identity = {name: open_source(SourceSettings(kind="text", path=str(tmp_path / name))).identity for name in "abc"}
    assert identity["a"] == identity["b"] != identity["c"]
    by_line = SourceSettings(kind="text", path=str(tmp_path / "a"), documents="line")
    assert open_source(by_line).identity != identity["a"]


def test_a_big_files_checksum_sees_its_size_its_ends_and_samples_between(tmp_path):
    path = tmp_path / "big"
    size = 1 << 25
    seen = set()
    for changed in (None, 0, size - 1, 10 * ((size - (1 << 18)) // 63) + 5):
        with path.open("wb") as file:
            file.truncate(size)
            if changed is not None:
                file.seek(changed)
                file.write(b"x")
        seen.add(checksum(path))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(seen | {checksum(path)}) == 5


@pytest.mark.data
def test_public_corpora_are_read(shared_data):
    play = str(shared_data("tinyshakespeare") / "input.txt")
    train, validation = (texts_of(kind="text", path=play, **part)[0] for part in ({"end": 0.9}, {"begin": 0.9}))
    assert train + validation == Path(play).read_text(encoding="utf-8")
    assert len(train) == pytest.approx(0.9 * 1_115_394, abs=200)
    web = str(shared_data("web_docs"))
    assert len(texts_of(kind="jsonl", path=web)) == 220
    assert len(texts_of(kind="text", path=f"{web}/wiki*.txt", documents="line")) == 20
