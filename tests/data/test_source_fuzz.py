"""Damaged files of every kind are read, or refused by their path; nothing else is raised."""

import bz2
import gzip
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmjax.data.sources import open_source
from lmjax.errors import UserError
from lmjax.settings import SourceSettings

TEXTS = [f"document {number}: zw\u00f6lf \u4e09 \U0001f600" * (number % 3) for number in range(30)]
LINES = "".join(json.dumps({"text": text, "n": number}) + "\n" for number, text in enumerate(TEXTS)).encode()


def parquet(path, **how):
    pq.write_table(pa.table({"text": TEXTS, "n": range(30)}), path, row_group_size=10, **how)
    return path.read_bytes()


def files(folder):
    """A good file of every kind, by name."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(LINES)
    return {
        "a.txt": "\n\n".join(TEXTS).encode(),
        "utf16.txt": "\n".join(TEXTS).encode("utf-16"),
        "a.jsonl": LINES,
        "list.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
        "a.csv": ("n,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS))).encode(),
        "a.jsonl.gz": gzip.compress(LINES),
        "a.jsonl.bz2": bz2.compress(LINES),
        "a.jsonl.xz": lzma.compress(LINES),
        "a.jsonl.zst": sink.getvalue().to_pybytes(),
        "a.parquet": parquet(folder / "made.parquet"),
        "zstd.parquet": parquet(folder / "made.parquet", compression="zstd"),
        "plain.parquet": parquet(folder / "made.parquet", compression="none", use_dictionary=False),
    }


def damaged(data, rng):
    """The bytes with a few flipped, a part cut out, doubled, or overwritten."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        to = min(to, at + rng.choice((1, 8, 200, len(raw))))
        kind = rng.randrange(5)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[at:to]
        elif kind == 2:
            raw[at:at] = raw[at:to]
        elif kind == 3:
            raw[at:to] = rng.randbytes(to - at)
        else:
            raw[at:at] = rng.choice((b"[" * 3000, b'"', b"\0", b"\xff\xfe", b"7" * 5000, b"\n", b"{"))
    return bytes(raw)


@pytest.mark.slow
def test_damaged_files_raise_nothing_but_user_errors(tmp_path):
    rng = random.Random(1)
    good = files(tmp_path)
    outcomes = {"read": 0, "refused": 0}
    for number in range(4000):
        name = list(good)[number % len(good)]
        path = tmp_path / name
        path.write_bytes(damaged(good[name], rng))
        settings = SourceSettings(path=str(path), on_bad_record=rng.choice(("error", "skip")))
        try:
            list(open_source(settings))
            outcomes["read"] += 1
        except UserError as error:
            assert str(path) in str(error), error
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == 4000 and min(outcomes.values()) > 400
