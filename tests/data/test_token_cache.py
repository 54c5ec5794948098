"""Tokens are made once for all runs that share a cache, and never served of a text that has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.data import token_cache as module
from lmjax.data.token_cache import TokenCache, publish_tokenizer, token_shards, tokenizer_entry
from lmjax.errors import UserError
from lmjax.settings import SourceSettings, TokenizerSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    return SourceSettings(kind="text", path=str(tmp_path / "train.txt"), documents="line")


@pytest.fixture
def opened(tmp_path, byte_encoder):
    """A function (source, folder, cache, ...) -> the shards, what was said, and the texts that were encoded."""

    def call(source, own="own", cache=TokenCache(tmp_path / "cache"), fingerprint="bytes"):
        said, texts = [], []
        encode = type(byte_encoder)().encode_batch
        byte_encoder.encode_batch = lambda batch: texts.extend(batch) or encode(batch)
        own = tmp_path / own / "tokens" / "text-0"
        shards = token_shards(source, byte_encoder, own, cache, fingerprint=fingerprint, say=said.append)
        return shards, said, texts

    return call


def _full(monkeypatch, folder):
    """The disk of this folder is full."""
    write = Path.write_bytes

    def refuse(path, raw):
        if folder in path.parents:
            raise OSError(28, "No space left on device")
        return write(path, raw)

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_the_first_run_encodes_and_every_other_finds_the_tokens(tmp_path, source, opened):
    made, said, texts = opened(source, "one")
    assert texts == ["one", "two", "three"]
    cache = tmp_path / "cache"
    assert said[-1] == f"source text {source.path}: 14 tokens in 3 documents, kept in the cache {cache}"
    weighted = SourceSettings(kind="text", path=source.path, documents="line", weight=3.0)
    for other in (source, weighted):
        found, said, texts = opened(other, "two")
        assert texts == [] and found.folder == made.folder
        assert said[-1] == f"source text {source.path}: 14 tokens in 3 documents, from the cache {cache}"
    assert sorted(path.name for path in (tmp_path / "two" / "tokens").iterdir()) == ["text-0.json"]


def test_the_same_text_in_another_folder_is_found(tmp_path, source, opened):
    made, *_ = opened(source, "one")
    (tmp_path / "copy").mkdir()
    copied = SourceSettings(kind="text", path=shutil.copy(source.path, tmp_path / "copy"), documents="line")
    found, said, texts = opened(copied, "two")
    assert texts == [] and found.folder == made.folder
    assert said[-1].startswith(f"source text {copied.path}: 14 tokens")


@pytest.mark.parametrize("changed", [{"end": 0.5}, {"documents": "file"}])
def test_another_reading_of_the_text_and_another_tokenizer_are_other_entries(source, opened, changed):
    made, *_ = opened(source, "one")
    other, _, texts = opened(
        SourceSettings(**{"kind": "text", "path": source.path, "documents": "line"} | changed), "two"
    )
    assert texts and other.folder != made.folder
    other, _, texts = opened(source, "three", fingerprint="other")
    assert texts and other.folder != made.folder and other.manifest.tokenizer == "other"


def test_a_changed_text_is_encoded_for_another_run_and_refused_by_the_run_that_began_with_it(source, opened):
    made, *_ = opened(source, "one")
    Path(source.path).write_text("one\ntwo\nthrex\n")  # of the same size
    other, _, texts = opened(source, "two")
    assert texts == ["one", "two", "threx"] and other.folder != made.folder
    with pytest.raises(
        UserError, match=r"text-0\.json: these shards were made from another source.*in contents; restore"
    ):
        opened(source, "one")


def test_a_file_whose_checksum_reads_a_part_of_it_alone_is_also_known_by_its_time(source, opened, monkeypatch):
    opened(source, "one")
    times = (1, 1)
    os.utime(source.path, ns=times)
    assert opened(source, "two")[2] == [], "its checksum reads all of a small file"
    monkeypatch.setattr(module, "READ_WHOLE", 3)
    assert opened(source, "three")[2] and opened(source, "four")[2] == []
    os.utime(source.path, ns=(2, 2))
    assert opened(source, "five")[2] == ["one", "two", "three"]


def test_a_text_that_changes_while_it_is_encoded_is_refused_and_not_kept(tmp_path, source, opened, byte_encoder):
    def edit(batch):
        with Path(source.path).open("a") as file:
            file.write("four\n")
        return type(byte_encoder)().encode_batch(batch)

    byte_encoder.encode_batch = edit
    own, cache = tmp_path / "own" / "tokens" / "text-0", TokenCache(tmp_path / "cache")
    with pytest.raises(UserError, match=r"train\.txt: changed while it was encoded; run the same command again"):
        token_shards(source, byte_encoder, own, cache, fingerprint="bytes", say=print)
    assert not [path for path in tmp_path.rglob("*") if path.name == "manifest.json"]


def test_a_default_cache_that_cannot_be_written_is_said_and_the_tokens_are_made_in_the_workdir(
    tmp_path, source, opened, monkeypatch
):
    (tmp_path / "cache").write_text("no folder")
    shards, said, _ = opened(source, "one")
    own = tmp_path / "one" / "tokens" / "text-0"
    assert shards.folder == own and len(said) == 2
    assert said[0].startswith(f"the cache {tmp_path / 'cache'} cannot be written ([Errno 20] Not a directory")
    assert said[0].endswith(f"the tokens of source text {source.path} are made in {own}")
    again, said, texts = opened(source, "one")
    assert again.folder == own and texts == [] and not any("cannot" in line for line in said)
    full = tmp_path / "full"
    _full(monkeypatch, full)
    shards, said, _ = opened(source, "two", TokenCache(full))
    assert shards.tokens == 14 and "No space left on device" in said[0]
    assert not [path for path in full.rglob("*") if path.is_file()]


def test_a_cache_of_the_users_choice_that_cannot_be_written_is_an_error(tmp_path, source, opened, monkeypatch):
    _full(monkeypatch, tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"--cache .*/cache: cannot be written \(.*No space left.*choose another folder"
    ):
        opened(source, cache=TokenCache(tmp_path / "cache", chosen=True))
    monkeypatch.undo()
    opened(source, "one")
    _full(monkeypatch, tmp_path / "cache")
    found, *_ = opened(source, "two", TokenCache(tmp_path / "cache", chosen=True))
    assert found.tokens == 14, "what is there needs no writing"


def test_a_cache_that_has_vanished_is_said_and_filled_again(tmp_path, source, opened):
    opened(source)
    shutil.rmtree(tmp_path / "cache")
    _, said, texts = opened(source)
    cache = tmp_path / "cache"
    assert said[0] == f"source text {source.path}: its tokens were in the cache {cache}, and are not in {cache}; " + (
        "they are made again"
    )
    assert texts == ["one", "two", "three"] and said[-1].endswith(f"kept in the cache {cache}")
    other = TokenCache(tmp_path / "other")
    assert f"were in the cache {cache}, and are not in {other.folder}" in opened(source, cache=other)[1][0]


def test_shards_that_a_workdir_holds_itself_are_used_and_not_made_again(tmp_path, source, opened):
    made, *_ = opened(source, cache=None)
    found, said, texts = opened(source)
    assert found.folder == made.folder == tmp_path / "own" / "tokens" / "text-0" and texts == []
    assert not (tmp_path / "cache").exists() and not any("cache" in line for line in said)


def test_a_damaged_entry_is_named_with_what_to_delete(source, opened):
    made, *_ = opened(source, "one")
    (made.folder / "tokens-00000.bin").unlink()
    with pytest.raises(UserError, match=rf"tokens-00000\.bin: is missing.*; or delete {made.folder}, and the next run"):
        opened(source, "two")


RACE = """
import os, sys, time
from pathlib import Path
import encoder
from lmjax.data.token_cache import TokenCache, token_shards
from lmjax.settings import SourceSettings

name, folder = sys.argv[1], Path(sys.argv[2])

class Waiting(encoder.Bytes):
    def encode_batch(self, texts):
        (folder / f"{name}.encodes").touch()
        awaited = "cache/*/*/manifest.json" if name == "later" else "later.encodes"
        while not any(folder.glob(awaited)):
            time.sleep(0.01)
        return super().encode_batch(texts)

source = SourceSettings(kind="text", path=str(folder / "train.txt"), documents="line")
own, cache = folder / name / "tokens" / "text-0", TokenCache(folder / "cache")
shards = token_shards(source, Waiting(), own, cache, fingerprint="bytes", say=print)
shards.verify()
print(shards.tokens, (shards.folder / "tokens-00000.bin").stat().st_ino)
"""
ENCODER = """
import numpy as np
class Bytes:
    vocab_size, eos_id = 257, 256
    def encode_batch(self, texts):
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]
"""


def test_of_two_processes_that_encode_at_once_the_later_one_uses_what_the_first_has_made(tmp_path, source):
    (tmp_path / "encoder.py").write_text(ENCODER)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", RACE]
    racing = [
        subprocess.Popen(
            [*command, name, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "later")
    ]
    ends = [process.communicate(timeout=600) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], ends
    assert {(tmp_path / f"{name}.encodes").exists() for name in ("first", "later")} == {True}, "both encoded"
    first, later = (out.splitlines()[-1] for out, _ in ends)
    assert first == later and first.startswith("14 "), "the file that the first one reads stays"
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    assert sorted(path.name for path in entry.iterdir()) == ["documents.bin", "manifest.json", "tokens-00000.bin"]


def test_a_trained_tokenizer_is_kept_by_settings_and_text(tmp_path):
    cache, settings = TokenCache(tmp_path / "cache"), TokenizerSettings(kind="bpe", vocab_size=300)
    entry = tokenizer_entry(cache, settings, ["ab", "c"])
    others = [
        tokenizer_entry(cache, settings, ["a", "bc"]),
        tokenizer_entry(cache, TokenizerSettings(kind="bpe", vocab_size=301), ["ab", "c"]),
    ]
    assert entry == tokenizer_entry(cache, settings, ("ab", "c")) and entry not in others
    (tmp_path / "made").mkdir()
    for content in ("first", "later"):
        (tmp_path / "made" / "vocab.json").write_text(json.dumps(content))
        publish_tokenizer(cache, tmp_path / "made", entry, pytest.fail)
    assert [json.loads((path / "vocab.json").read_text()) for path in entry.parent.iterdir()] == ["first"]
    (tmp_path / "file").write_text("")
    said = []
    broken = TokenCache(tmp_path / "file")
    publish_tokenizer(broken, tmp_path / "made", tokenizer_entry(broken, settings, []), said.append)
    assert "cannot be written" in said[0] and said[0].endswith("the tokenizer is kept in the workdir alone")
    with pytest.raises(UserError, match="--cache"):
        chosen = TokenCache(tmp_path / "file", chosen=True)
        publish_tokenizer(chosen, tmp_path / "made", tokenizer_entry(chosen, settings, []), pytest.fail)
