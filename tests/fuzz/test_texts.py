"""Damaged sources of text of every format and compression; see also tests/data/test_source_fuzz.py."""

import bz2
import contextlib
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from lmjax.data.sources import open_source
from lmjax.errors import UserError
from lmjax.settings import SourceSettings

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

TEXTS = ["one document\nof two lines\n\nand another", "h\u00e9llo \u2014 w\u00f6rld", "x" * 300]
LINES = "\n".join(json.dumps({"text": text, "id": n}) for n, text in enumerate(TEXTS)).encode()


def zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def parquet(kind):
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": pyarrow.array(TEXTS * 20, kind), "n": list(range(60))})
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.txt": "\n\n".join(TEXTS).encode(),
    "utf16.txt": "\n\n".join(TEXTS).encode("utf-16"),
    "a.md": "\n\n".join(TEXTS).encode(),
    "a.jsonl": LINES,
    "a.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a.csv": b'n,text\n1,"one\nof two"\n2,"a, ""b"""\n3,c\n',
    "a.parquet": parquet(pyarrow.string()),
    "binary.parquet": parquet(pyarrow.binary()),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.txt.bz2": bz2.compress("\n\n".join(TEXTS).encode()),
    "a.json.xz": lzma.compress(json.dumps([{"text": text} for text in TEXTS]).encode()),
    "a.jsonl.zst": zstd(LINES),
}
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
@pytest.mark.parametrize("name", FILES)
def test_texts(tmp_path, name, on_bad_record):
    """Every record is read; half of what is compressed is damaged before it is."""
    settings = SourceSettings(path=str(tmp_path / name), on_bad_record=on_bad_record)
    pack = PACK.get(name[name.rindex(".") :])

    def read():
        documents = open_source(settings)
        for index in range(len(documents)):
            with contextlib.suppress(UserError):
                documents[index]
        return documents.contents

    def make(rng):
        if pack is not None and rng.random() < 0.5:
            return pack(damaged_json(LINES.decode(), rng))
        if ".json" in name and pack is None:
            return damaged_json(FILES[name].decode(), rng)
        return damaged_bytes(FILES[name], rng)

    survives(written(tmp_path / name, read), make, 110, 1, always="either")
