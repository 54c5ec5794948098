"""Token shards are compared with their manifest once on a machine, and ids with the tokenizer's entries."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from lmjax.data import verified
from lmjax.data.token_shards import Manifest
from lmjax.data.write_shards import TokenShards, open_shards
from lmjax.errors import UserError
from lmjax.settings import SourceSettings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lmjax" / "verified"


@pytest.fixture
def folder(make_shards, ragged_texts):
    """Shards of 37 tokens a file, made with a tokenizer of 257 entries."""
    return make_shards(ragged_texts).folder


@pytest.fixture
def read(folder, byte_encoder):
    """A function that opens the shards as a recipe's source, and gives what was said."""

    def opened(encoder=byte_encoder):
        said = []
        source = SourceSettings(kind="shards", path=str(folder))
        open_shards(source, encoder, folder, fingerprint="bytes", say=said.append)
        return said

    return opened


def rewrite(path, change, keep_digest=False):
    """Changes a file of tokens in place; `keep_digest` leaves the manifest as it was."""
    tokens = np.fromfile(path, "<u2")
    change(tokens)
    path.write_bytes(tokens.tobytes())
    if not keep_digest:
        manifest = json.loads((path.parent / "manifest.json").read_text())
        for file in manifest["files"]:
            if file["name"] == path.name:
                file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_files_are_verified_once_and_again_when_they_change(folder, read, monkeypatch):
    checked = []
    check = verified.verify_file
    monkeypatch.setattr(verified, "verify_file", lambda path, *rest: (checked.append(path.name), check(path, *rest)))
    (said,) = read()
    names = [file.name for file in Manifest.read(folder).files]
    assert sorted(checked) == sorted(names)
    assert said.startswith(f"{folder}: {len(names)} files of ") and " MB verified in " in said
    assert read() == []
    checked.clear()
    shutil.copy2(folder / names[2], folder.parent / "copy")  # the same bytes and time in another file
    (folder.parent / "copy").replace(folder / names[2])
    os.utime(folder / names[4], ns=(1, 1))
    assert len(read()) == 1 and sorted(checked) == [names[2], names[4]]


def test_random_tokens_of_the_right_size_are_refused(folder, read):
    def scramble(tokens):
        tokens[:] = np.random.default_rng(0).integers(0, 257, len(tokens))

    rewrite(folder / "tokens-00002.bin", scramble, keep_digest=True)
    for _ in range(2):  # what was refused is not kept as verified
        with pytest.raises(UserError, match=r"tokens-00002\.bin: sha256 .* the file is damaged: prepare or copy"):
            read()


def test_a_swapped_file_and_a_damaged_index_are_refused(folder, read):
    one, two = folder / "tokens-00000.bin", folder / "tokens-00001.bin"
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b), two.write_bytes(a)
    with pytest.raises(UserError, match=r"tokens-00000\.bin: sha256"):
        read()
    one.write_bytes(a), two.write_bytes(b)
    index = bytearray((folder / "documents.bin").read_bytes())
    index[9] ^= 1
    (folder / "documents.bin").write_bytes(bytes(index))
    with pytest.raises(UserError, match=r"documents\.bin: sha256"):
        read()


@pytest.mark.parametrize("keep_digest", [False, True])
def test_an_id_that_the_tokenizer_does_not_have_is_named_with_its_place(folder, read, keep_digest):
    rewrite(folder / "tokens-00003.bin", lambda tokens: tokens.__setitem__(slice(11, None), 65535), keep_digest)
    with pytest.raises(UserError, match=r"tokens-00003\.bin: .*token 11 is 65535: expected ids below .* 257 entries"):
        read()


def test_another_number_of_entries_is_verified_anew(folder, read, byte_encoder):
    read()
    fewer = dataclasses.replace(byte_encoder) if dataclasses.is_dataclass(byte_encoder) else type(byte_encoder)()
    fewer.vocab_size = 100
    with pytest.raises(UserError, match="expected ids below the tokenizer's 100 entries"):
        read(fewer)


def test_large_files_are_read_in_pieces(folder, read, monkeypatch):
    monkeypatch.setattr("lmjax.data.token_shards._READ_BYTES", 16)
    assert len(read()) == 1
    rewrite(folder / "tokens-00003.bin", lambda tokens: tokens.__setitem__(30, 300))
    with pytest.raises(UserError, match="token 30 is 300"):
        read()


def test_prepared_shards_are_verified_when_they_are_opened_again(tmp_path, byte_encoder):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    source, said = SourceSettings(kind="text", path=str(tmp_path / "a.txt")), []
    for _ in range(3):
        open_shards(source, byte_encoder, tmp_path / "s", fingerprint="bytes", say=said.append)
    assert len(said) == 1 and "2 files of 0.0 MB verified" in said[0]


def test_a_record_that_cannot_be_read_or_written_means_reading_again(tmp_path, folder, read, cache):
    read()
    (record,) = cache.iterdir()
    record.write_bytes(b"")
    assert len(read()) == 1
    shutil.rmtree(cache)
    cache.write_text("in the way")
    for _ in range(2):
        verified_line, problem = read()
        assert " verified in " in verified_line and "verified at every start" in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"][0].update(name="/etc/passwd"), r"'/etc/passwd' names a file: expected one plain name"),
        (lambda m: m["files"][0].update(name="../x.bin"), r"'\.\./x\.bin' names a file"),
        (lambda m: m["files"][1].update(bytes="74"), r"files\[1\]\.bytes = '74': expected a whole number"),
        (lambda m: m["files"][1].pop("sha256"), r"no field 'files\[1\]\.sha256'"),
        (lambda m: m.update(dtype="float64"), r"dtype = 'float64': expected 'uint16' or 'uint32'"),
        (lambda m: m.update(tokens=m["tokens"] + 1), r"expected .* tokens in files of 37, then documents\.bin"),
        (lambda m: m.update(shard_tokens=0), r"expected .* tokens in files of 0"),
        (lambda m: m.update(files=[]), r"files = \(\): expected"),
        (lambda m: m["files"].reverse(), r"expected .* then documents\.bin"),
        (lambda m: m.update(documents=3), r"documents = 3: expected as many as documents\.bin holds"),
        (lambda m: m.update(text_bytes=None), r"text_bytes = None: expected a whole number"),
        (lambda m: m.update(source=[]), r"source = \[\]: expected"),
    ],
)
def test_a_manifest_whose_fields_do_not_fit_is_named(folder, change, message):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message) as error:
        TokenShards(folder)
    assert str(path) in str(error.value) and str(error.value).endswith(("prepare the shards again", "written"))


def test_a_manifest_that_a_crash_left_empty_is_said(folder):
    (folder / "manifest.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"manifest\.json:1: expected JSON .*; prepare the shards again"):
        TokenShards(folder)
