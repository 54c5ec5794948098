"""Token shards: what is written, that it does not depend on the workers, and that damage is named."""

import json
import os
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lmjax.data import write_shards as shards_module
from lmjax.data.sources import MemoryDocuments, open_source
from lmjax.data.write_shards import TokenShards, open_shards, prepare_shards
from lmjax.errors import UserError
from lmjax.settings import SourceSettings

ROOT = Path(__file__).parents[2]


def tokens_of(text):
    return [*text.encode("utf-8"), 256]


def all_tokens(shards):
    return shards.windows(np.array([0]), shards.tokens)[0].tolist()


def test_every_document_can_be_read_back_with_its_end_of_text(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    assert len(shards.manifest.files) > 5  # many documents cross files
    assert [shards.document(i).tolist() for i in range(len(shards))] == [tokens_of(text) for text in ragged_texts]
    assert all_tokens(shards) == list(chain(*map(tokens_of, ragged_texts)))
    assert shards.manifest.text_bytes == sum(len(text.encode()) for text in ragged_texts)
    assert (
        shards.document_bounds().tolist() == np.cumsum([0, *(len(tokens_of(text)) for text in ragged_texts)]).tolist()
    )


def test_windows_and_take_agree_and_end_in_zeros(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    flat = np.array(all_tokens(shards))
    starts = np.array([0, 30, 36, 37, 38, 73, shards.tokens - 5])
    windows = shards.windows(starts, 90)
    padded = np.concatenate([flat, np.zeros(90, int)])
    np.testing.assert_array_equal(windows, [padded[start : start + 90] for start in starts])
    positions = np.sort(np.random.default_rng(0).integers(0, shards.tokens, 200))
    np.testing.assert_array_equal(shards.take(positions), flat[positions])
    assert windows.dtype == shards.take(positions).dtype == np.int32


@pytest.mark.parametrize(("vocab_size", "dtype", "width"), [(65_536, "uint16", 2), (65_537, "uint32", 4)])
def test_the_vocabulary_decides_the_width_of_a_token(tmp_path, vocab_size, dtype, width):
    class Wide:
        eos_id = vocab_size - 1

        def encode_batch(self, texts):
            return [np.arange(len(text), dtype=np.int32) for text in texts]

    encoder = Wide()
    encoder.vocab_size = vocab_size
    shards = prepare_shards(MemoryDocuments(["abc"]), encoder, tmp_path / "s", fingerprint="wide")
    assert shards.manifest.dtype == dtype
    assert (tmp_path / "s" / "tokens-00000.bin").stat().st_size == 4 * width
    assert all_tokens(shards) == [0, 1, 2, vocab_size - 1]


def test_a_token_outside_the_vocabulary_never_reaches_a_shard(tmp_path, byte_encoder):
    byte_encoder.vocab_size = 256  # one too few for the end of text
    with pytest.raises(ValueError, match="outside vocab_size 256"):
        prepare_shards(MemoryDocuments(["abc"]), byte_encoder, tmp_path / "s", fingerprint="bytes")


def test_the_manifest_counts_skipped_and_empty_records(tmp_path, byte_encoder):
    lines = ['{"text": "one"}', "{", '{"text": ""}', '{"text": "two"}', "[]"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(SourceSettings(kind="jsonl", path=str(tmp_path / "a.jsonl"), on_bad_record="skip"))
    manifest = prepare_shards(source, byte_encoder, tmp_path / "s", fingerprint="bytes").manifest
    assert (manifest.documents, manifest.skipped, manifest.empty, manifest.tokens) == (2, 2, 1, 8)
    assert "a.jsonl:2" in manifest.skipped_examples[0] and "a.jsonl:5" in manifest.skipped_examples[1]


def test_a_source_without_a_good_record_is_an_error_and_leaves_nothing(tmp_path, byte_encoder):
    (tmp_path / "a.jsonl").write_text("{\n{")
    source = open_source(SourceSettings(kind="jsonl", path=str(tmp_path / "a.jsonl"), on_bad_record="skip"))
    with pytest.raises(UserError, match=r"no text is left of 2 documents \(2 bad records skipped.*a\.jsonl:1"):
        prepare_shards(source, byte_encoder, tmp_path / "s", fingerprint="bytes")
    assert list((tmp_path / "s").iterdir()) == []


WORKER_MODULE = """
import numpy as np, os
class Bytes:
    vocab_size, eos_id = 257, 256
    def encode_batch(self, texts):
        if "DIE" in texts: os._exit(9)
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]
"""
WORKER_SCRIPT = """
import sys
from itertools import chain
from pathlib import Path
import encoder
from lmjax.data import write_shards as shards
from lmjax.data.sources import open_source
from lmjax.errors import UserError
from lmjax.settings import SourceSettings
if __name__ == "__main__":
    shards._RUN_BYTES = 300
    folder = Path(sys.argv[1])
    source = open_source(SourceSettings(kind="jsonl", path=str(folder / "a.jsonl"), on_bad_record="skip"))
    seen = []
    for workers in (1, 2, 3):
        shards.prepare_shards(source, encoder.Bytes(), folder / str(workers), fingerprint="bytes", shard_tokens=100,
                              workers=workers, report=lambda done, total: seen.append((done, total)))
    assert len(seen) > 12 and seen == seen[: len(seen) // 3] * 3 and seen[-1] == (len(source), len(source)), seen
    (folder / "bad.jsonl").write_text('{"text": "a"}\\n' * 50 + '{"text": "DIE"}\\n')
    try:
        source = open_source(SourceSettings(kind="jsonl", path=str(folder / "bad.jsonl")))
        shards.prepare_shards(source, encoder.Bytes(), folder / "dead", fingerprint="bytes", workers=2)
    except UserError as error:
        assert "died" in str(error), error
    else:
        raise AssertionError("the death of a worker went unnoticed")
    assert "jax" not in sys.modules
"""
KILLED_SCRIPT = """
import sys, time
import encoder
from lmjax.data import write_shards as shards
from lmjax.data.sources import MemoryDocuments
if __name__ == "__main__":
    shards._RUN_BYTES = 300
    source = MemoryDocuments([str(i) * 50 for i in range(2000)])
    def stay(done, total):
        import multiprocessing
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
    shards.prepare_shards(source, encoder.Bytes(), sys.argv[1], fingerprint="bytes", workers=2, report=stay)
"""
RACE_SCRIPT = """
import sys
import encoder
from lmjax.data.write_shards import prepare_shards
from lmjax.data.sources import MemoryDocuments
source = MemoryDocuments([str(i) * 50 for i in range(2000)])
prepare_shards(source, encoder.Bytes(), sys.argv[1], fingerprint="bytes", shard_tokens=1000).verify()
"""


def test_shards_do_not_depend_on_the_number_of_worker_processes(tmp_path, ragged_texts):
    lines = [json.dumps({"text": text}) for text in ragged_texts]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:30], "{", *lines[30:]]))
    (tmp_path / "encoder.py").write_text(WORKER_MODULE)
    (tmp_path / "prepare.py").write_text(WORKER_SCRIPT)
    command = [sys.executable, str(tmp_path / "prepare.py"), str(tmp_path)]
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    contents = [{path.name: path.read_bytes() for path in (tmp_path / str(n)).iterdir()} for n in (1, 2, 3)]
    assert contents[0] == contents[1] == contents[2]
    assert [TokenShards(tmp_path / "2").document(i).tolist() for i in range(60)] == [tokens_of(t) for t in ragged_texts]
    assert TokenShards(tmp_path / "3").manifest.skipped == 1


def test_workers_end_with_the_process_that_started_them(tmp_path):
    (tmp_path / "encoder.py").write_text(WORKER_MODULE)
    (tmp_path / "prepare.py").write_text(KILLED_SCRIPT)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    command = [sys.executable, str(tmp_path / "prepare.py"), str(tmp_path / "shards")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        workers = [int(number) for number in child.stdout.readline().split()]
        child.kill()
    assert len(workers) == 2
    patience = time.monotonic() + 600
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < patience, "workers are left behind"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_progress_reaches_the_end(tmp_path, byte_encoder, monkeypatch):
    monkeypatch.setattr(shards_module, "_RUN_BYTES", 10)
    seen = []
    source = MemoryDocuments(["12345"] * 7)
    prepare_shards(source, byte_encoder, tmp_path / "s", fingerprint="bytes", report=lambda *pair: seen.append(pair))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_a_half_written_folder_is_redone(make_shards, ragged_texts, tmp_path, byte_encoder):
    whole = make_shards(ragged_texts)
    half = tmp_path / "half"
    half.mkdir()
    (half / "tokens-00000.bin").write_bytes(b"half")
    (half / "partial-elsewhere-1").mkdir()
    shards = prepare_shards(MemoryDocuments(ragged_texts), byte_encoder, half, fingerprint="bytes", shard_tokens=37)
    shards.verify()
    assert all_tokens(shards) == all_tokens(whole)


def test_the_manifest_appears_last(tmp_path, byte_encoder, monkeypatch):
    moved = []
    replace = Path.replace

    def recorded(self, target):
        if target.parent == tmp_path / "s":
            moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    prepare_shards(MemoryDocuments(["abcdef"]), byte_encoder, tmp_path / "s", fingerprint="bytes", shard_tokens=4)
    assert moved == ["tokens-00000.bin", "tokens-00001.bin", "documents.bin", "manifest.json"]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted(moved)


def test_complete_shards_are_opened_and_not_made_again(tmp_path, byte_encoder):
    arguments = {"folder": tmp_path / "s", "fingerprint": "bytes"}
    prepare_shards(MemoryDocuments(["abc"]), byte_encoder, **arguments)
    byte_encoder.encode_batch = None
    assert len(prepare_shards(MemoryDocuments(["abc"]), byte_encoder, **arguments)) == 1
    with pytest.raises(UserError, match=r"s/manifest\.json: these shards were made from another source.*contents"):
        prepare_shards(MemoryDocuments(["abd"]), byte_encoder, **arguments)


def test_another_tokenizer_is_refused_by_name(make_shards):
    shards = make_shards(["abc"], fingerprint="bytes-1")
    with pytest.raises(UserError, match=r"manifest\.json: .*tokenizer bytes-1, expected bytes-2"):
        TokenShards(shards.folder, "bytes-2")
    TokenShards(shards.folder, "bytes-1")


@pytest.mark.parametrize("name", ["tokens-00001.bin", "documents.bin"])
def test_a_truncated_or_missing_file_is_named_when_shards_are_opened(make_shards, ragged_texts, name):
    path = make_shards(ragged_texts).folder / name
    raw = path.read_bytes()
    path.write_bytes(raw[:-2])
    with pytest.raises(UserError, match=rf"{name}: holds {len(raw) - 2} bytes, expected {len(raw)}"):
        TokenShards(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: is missing"):
        TokenShards(path.parent)


def test_verify_names_the_file_whose_checksum_differs(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    shards.verify()
    path = shards.folder / "tokens-00003.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"tokens-00003\.bin: sha256"):
        TokenShards(shards.folder).verify()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}', '{"format": "lmjax token shards 1", "files": []}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        TokenShards(tmp_path)


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(UserError, match="no token shards here"):
        TokenShards(tmp_path / "nowhere")


def test_parts_of_shards_make_up_the_whole(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    parts = [shards.part(0, 0.33), shards.part(0.33, 0.9), shards.part(0.9, 1)]
    assert [len(part) for part in parts] == [20, 34, 6]
    assert list(chain(*map(all_tokens, parts))) == all_tokens(shards)
    assert parts[1].document(0).tolist() == tokens_of(ragged_texts[20])
    rows, begins = parts[1].starts_between(np.array([0]), np.array([parts[1].tokens - 1]))
    assert begins.tolist() == parts[1].document_bounds()[1:-1].tolist() and not rows.any()


def test_parts_of_a_single_document_divide_its_tokens(make_shards):
    shards = make_shards(["abcdefghi"])
    assert all_tokens(shards.part(0, 0.4)) + all_tokens(shards.part(0.4, 1)) == tokens_of("abcdefghi")
    assert shards.part(0.4, 1).tokens == 6
    assert shards.part(0.4, 1).document_bounds().tolist() == [0, 6]
    with pytest.raises(UserError, match="select none"):
        shards.part(0.0, 0.01)


def test_open_shards_prepares_text_and_opens_shards(tmp_path, byte_encoder):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    settings = SourceSettings(kind="text", path=str(tmp_path / "a.txt"), documents="line")
    made = open_shards(settings, byte_encoder, tmp_path / "s", fingerprint="bytes")
    again = SourceSettings(kind="shards", path=str(tmp_path / "s"), begin=0.5)
    assert all_tokens(made) == list(chain(*map(tokens_of, ("one", "two", "three", "four"))))
    assert all_tokens(open_shards(again, byte_encoder, tmp_path / "t", fingerprint="bytes")) == all_tokens(made)[8:]


def test_a_very_long_document_is_encoded_in_pieces_and_stays_one(tmp_path, byte_encoder, monkeypatch):
    monkeypatch.setattr(shards_module, "LONGEST_TEXT", 10)
    encoded = []
    encode_batch = byte_encoder.encode_batch
    byte_encoder.encode_batch = lambda texts: encoded.extend(texts) or encode_batch(texts)
    text = "one\ntwo\nthree\nfour and twenty\n"
    shards = prepare_shards(MemoryDocuments([text, "x"]), byte_encoder, tmp_path / "s", fingerprint="bytes")
    assert encoded == ["one\ntwo\n", "three\n", "four and t", "wenty\n", "x"]
    assert [shards.document(i).tolist() for i in range(2)] == [tokens_of(text), tokens_of("x")]


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, byte_encoder, monkeypatch):
    def full(self, raw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"/s: the shards cannot be written .*No space left"):
        prepare_shards(MemoryDocuments(["abc"]), byte_encoder, tmp_path / "s", fingerprint="bytes")


def test_processes_that_prepare_one_folder_at_once_all_end_with_whole_shards(tmp_path):
    (tmp_path / "encoder.py").write_text(WORKER_MODULE)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    command = [sys.executable, "-c", RACE_SCRIPT, str(tmp_path / "s")]
    racing = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=600)[1] for process in racing]
    assert [process.returncode for process in racing] == [0, 0, 0], errors
    assert len(TokenShards(tmp_path / "s")) == 2000
    assert not list((tmp_path / "s").glob("partial*"))


def test_what_a_dead_process_left_half_written_is_removed_and_a_living_ones_is_not(tmp_path, byte_encoder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = {pid: tmp_path / "s" / f"partial-{socket.gethostname()}-{pid}" for pid in (dead.pid, os.getppid())}
    for folder in left.values():
        folder.mkdir(parents=True)
        (folder / "tokens-00000.bin").write_bytes(b"half")
    prepare_shards(MemoryDocuments(["abc"]), byte_encoder, tmp_path / "s", fingerprint="bytes")
    assert not left[dead.pid].exists() and left[os.getppid()].exists()
