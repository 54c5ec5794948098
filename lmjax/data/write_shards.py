"""Turns a source of documents into token shards, in parallel where it is big.

Documents and a tokenizer go in; a folder of checksummed files comes out (lmjax/data/token_shards.py), the same for any
number of workers. Worker processes encode runs of documents; this process joins their tokens and writes them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict, Unpack

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.sources import open_source
from lmjax.data.token_shards import DOCUMENTS, MANIFEST, Manifest, ShardFile, TokenShards
from lmjax.data.verified import verify_once
from lmjax.errors import UserError
from lmjax.files import user_path
from lmjax.settings import SourceSettings

__all__ = ["TokenShards", "open_shards", "prepare_shards"]

SHARD_TOKENS = 1 << 27  # 256 MiB of uint16
LONGEST_TEXT = 1 << 24  # characters encoded at once; a longer document is encoded in pieces that end where lines end
_RUN_BYTES = 1 << 21  # about how much text a worker encodes at a time
_BIG_BYTES = 1 << 24  # from here on workers pay for their start
_EXAMPLES = 10  # messages of skipped records that the manifest keeps

Report = Callable[[int, int], None]  # documents done, documents in all
Say = Callable[[str], None]


class CannotWriteError(UserError):
    """A folder that shards cannot be written to: it is read-only, or its disk is full."""


class Encoder(Protocol):
    """What is asked of a tokenizer here. It must be picklable, because it travels to the workers."""

    vocab_size: int
    eos_id: int

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...


class Encoded(NamedTuple):
    """A run of documents in tokens."""

    tokens: np.ndarray  # of all its documents, each with eos at its end
    lengths: np.ndarray  # int64 [documents], in tokens
    text_lengths: np.ndarray  # int64 [documents], in UTF-8 bytes
    skipped: list[str]
    empty: int


class PrepareOptions(TypedDict, total=False):
    """How `prepare_shards` writes, where it is not as by default."""

    shard_tokens: int
    workers: int | None
    report: Report | None


def open_shards(
    settings: SourceSettings,
    tokenizer: Encoder,
    folder: Path,
    *,
    fingerprint: str,
    say: Say = lambda line: None,
    **options: Unpack[PrepareOptions],
) -> TokenShards:
    """The token shards of any source: those at `settings.path`, or prepared from its text in `folder`.

    Those that were there are verified once on this machine, which `say` receives, as it does files that are not read.
    """
    if settings.kind == "shards":
        shards = TokenShards(user_path(settings.path, "source.path"), fingerprint)
        verify_once(shards, tokenizer.vocab_size, say)
        return shards.part(settings.begin, settings.end)
    source = open_text(settings, say)
    return find_or_prepare(source, tokenizer, folder, fingerprint=fingerprint, say=say, **options)


def open_text(settings: SourceSettings, say: Say) -> Documents:
    """The documents of a source of text; `say` receives the files that are not read."""
    source = open_source(settings)
    if source.left_out:
        say(f"{source.name}: not read: {', '.join(source.left_out)}")
    return source


def find_or_prepare(
    source: Documents,
    tokenizer: Encoder,
    folder: Path,
    *,
    fingerprint: str,
    say: Say = lambda line: None,
    **options: Unpack[PrepareOptions],
) -> TokenShards:
    """The source's token shards in `folder`: verified once on this machine where they are there, or else prepared."""
    there = (folder / MANIFEST).is_file()
    shards = prepare_shards(source, tokenizer, folder, fingerprint=fingerprint, **options)
    if there:
        verify_once(shards, tokenizer.vocab_size, say)
    return shards


def prepare_shards(
    source: Documents,
    tokenizer: Encoder,
    folder: Path | str,
    *,
    fingerprint: str,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    report: Report | None = None,
) -> TokenShards:
    """Writes the source's token shards to `folder`, or opens them where they are complete.

    fingerprint: what tells this tokenizer from others. workers: processes; None takes one per core where the source is
    big, and none where it is small. Several processes may prepare one folder at once: each writes into a partial folder
    of its own, and the first that is done moves its files into place. Raises UserError where the folder holds shards of
    another source or tokenizer, where nothing is left to train on, where a file changes meanwhile, and for bad records
    as `source.settings.on_bad_record` says; CannotWriteError where the folder cannot be written.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        shards = TokenShards(folder, fingerprint)
        fix = "delete the folder, or prepare into another one"
        check_source(source, shards.manifest.source, folder / MANIFEST, fix, shard_tokens)
        return shards
    partial = folder / f"partial-{socket.gethostname()}-{os.getpid()}"
    try:
        _remove_abandoned(folder)
        partial.mkdir(parents=True)
        writer, before, _ = _Writer(partial, tokenizer, shard_tokens), _times(source), source.identity
        for run in _encoded(source, tokenizer, workers, report):
            writer.add(run)
        manifest = writer.finish(source, fingerprint)
        if _times(source) != before:
            raise UserError(f"{source.name}: changed while it was encoded; run the same command again")
        if not (folder / MANIFEST).is_file():  # otherwise another process was first, with the same tokens
            for name in [*(file.name for file in manifest.files), MANIFEST]:
                (partial / name).replace(folder / name)
    except OSError as error:
        raise CannotWriteError(
            f"{folder}: the shards cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenShards(folder, fingerprint)


def check_source(
    source: Documents, made_from: Mapping[str, object], where: Path, fix: str, shard_tokens: int = SHARD_TOKENS
) -> None:
    """Raises UserError naming `where` unless the source is the one that shards were made from."""
    wanted = source.identity | {"shard_tokens": shard_tokens}
    differing = [key for key, value in wanted.items() if made_from.get(key) != value]
    if differing:
        raise UserError(
            f"{where}: these shards were made from another source, which differs in {', '.join(differing)}; {fix}"
        )


def _times(source: Documents) -> list[int]:
    """When each of the source's files was last changed; 0 for one that is gone."""
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in source.paths]


class _Writer:
    """Appends runs of tokens to shard files of equal size, with their checksums."""

    def __init__(self, folder: Path, tokenizer: Encoder, shard_tokens: int) -> None:
        self.folder, self.tokenizer, self.shard_tokens = folder, tokenizer, shard_tokens
        self.files: list[ShardFile] = []
        self.tokens = self.skipped = self.empty = 0
        self.examples: list[str] = []
        self.lengths: list[np.ndarray] = []
        self.text_lengths: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0

    def add(self, run: Encoded) -> None:
        self.tokens += len(run.tokens)
        self.lengths.append(run.lengths)
        self.text_lengths.append(run.text_lengths)
        self.skipped += len(run.skipped)
        self.empty += run.empty
        self.examples += run.skipped[: _EXAMPLES - len(self.examples)]
        self._waiting.append(run.tokens)
        self._waiting_tokens += len(run.tokens)
        while self._waiting_tokens >= self.shard_tokens:
            self._flush(self.shard_tokens)

    def finish(self, source: Documents, fingerprint: str) -> Manifest:
        """Writes the rest, the document index and the manifest."""
        lengths, text_lengths = np.concatenate(self.lengths), np.concatenate(self.text_lengths)
        if not len(lengths):
            raise UserError(
                f"{source.name}: no text is left of {len(source)} documents ({self.skipped} bad records skipped, "
                f"{self.empty} empty); " + (self.examples[0] if self.examples else "give a source with text")
            )
        if self._waiting_tokens:
            self._flush(self._waiting_tokens)
        index = np.zeros((2, len(lengths) + 1), "<i8")
        index[0, 1:], index[1, 1:] = np.cumsum(lengths), np.cumsum(text_lengths)
        self._write(DOCUMENTS, index)
        manifest = Manifest(
            tokenizer=fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            eos_id=self.tokenizer.eos_id,
            dtype=_dtype(self.tokenizer).name,
            shard_tokens=self.shard_tokens,
            tokens=self.tokens,
            documents=len(lengths),
            text_bytes=int(index[1, -1]),
            skipped=self.skipped,
            skipped_examples=tuple(self.examples),
            empty=self.empty,
            source_name=source.name,
            source=source.identity | {"shard_tokens": self.shard_tokens},
            files=tuple(self.files),
        )
        manifest.write(self.folder / MANIFEST)
        return manifest

    def _flush(self, count: int) -> None:
        joined = np.concatenate(self._waiting)
        self._write(f"tokens-{len(self.files):05d}.bin", joined[:count])
        self._waiting = [joined[count:]]
        self._waiting_tokens = len(joined) - count

    def _write(self, name: str, array: np.ndarray) -> None:
        raw = np.ascontiguousarray(array).tobytes()
        (self.folder / name).write_bytes(raw)
        with (self.folder / name).open("rb") as file:
            os.fsync(file.fileno())  # before the manifest says that it is there
        self.files.append(ShardFile(name, len(raw), hashlib.sha256(raw).hexdigest()))


def _encoded(source: Documents, tokenizer: Encoder, workers: int | None, report: Report | None) -> Iterator[Encoded]:
    """The source in runs of documents, in order."""
    total = len(source)
    per_run = max(1, min(total, total * _RUN_BYTES // max(1, source.size_bytes)))
    runs = [(first, min(total, first + per_run)) for first in range(0, total, per_run)]
    if workers is None:
        workers = os.cpu_count() or 1 if source.size_bytes >= _BIG_BYTES else 1
    in_this_process = workers <= 1 or len(runs) == 1
    encoded = (
        (_encode(source, tokenizer, *run) for run in runs)
        if in_this_process
        else _encoded_by_workers(source, tokenizer, runs, min(workers, len(runs)))
    )
    for (_, done), run in zip(runs, encoded, strict=True):
        yield run
        if report is not None:
            report(done, total)


def _encoded_by_workers(
    source: Documents, tokenizer: Encoder, runs: Sequence[tuple[int, int]], workers: int
) -> Iterator[Encoded]:
    """As many runs as twice the workers are under way, so that memory stays bounded."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of jax's threads
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(source, tokenizer))
    waiting: deque[Future[Encoded]] = deque()
    try:
        for number in range(len(runs)):
            for run in runs[number + len(waiting) : number + 2 * workers]:
                waiting.append(pool.submit(_encode_in_worker, *run))
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"{source.name}: a process that encodes it died ({error}). Out of memory, or started from a script whose "
            'code is not under `if __name__ == "__main__":`, which worker processes need; or use workers=1'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Documents, Encoder]


def _start_worker(source: Documents, tokenizer: Encoder) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the process that waits decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker = (source, tokenizer)


def _end_with_parent() -> None:
    """Ends this worker when the process that started it has been killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(first: int, last: int) -> Encoded:
    return _encode(*_worker, first, last)


def _encode(source: Documents, tokenizer: Encoder, first: int, last: int) -> Encoded:
    texts, skipped = source.read(first, last)
    full = [text for text in texts if text]
    pieces = [_pieces(text) for text in full]
    encoded = _encoded_pieces(tokenizer, [piece for of_text in pieces for piece in of_text])
    eos = np.array([tokenizer.eos_id], np.int32)
    documents = [np.concatenate([*(next(encoded) for _ in of_text), eos]) for of_text in pieces]
    tokens = np.concatenate(documents) if documents else np.zeros(0, np.int32)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
        raise ValueError(f"token ids {tokens.min()} .. {tokens.max()} outside vocab_size {tokenizer.vocab_size}")
    lengths = np.array([len(document) for document in documents], np.int64)
    text_lengths = np.array([len(text.encode("utf-8")) for text in full], np.int64)
    return Encoded(tokens.astype(_dtype(tokenizer)), lengths, text_lengths, skipped, len(texts) - len(full))


def _dtype(tokenizer: Encoder) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _pieces(text: str) -> list[str]:
    """The text, cut at line ends (or, in very long lines, anywhere) where it is longer than LONGEST_TEXT."""
    pieces = []
    first = 0
    while len(text) - first > LONGEST_TEXT:
        cut = text.rfind("\n", first, first + LONGEST_TEXT) + 1 or first + LONGEST_TEXT
        pieces.append(text[first:cut])
        first = cut
    return [*pieces, text[first:]]


def _encoded_pieces(tokenizer: Encoder, pieces: list[str]) -> Iterator[np.ndarray]:
    """All at once, or one by one where they are much text, because libraries keep many bytes per token."""
    if sum(map(len, pieces)) <= LONGEST_TEXT:
        yield from tokenizer.encode_batch(pieces)
    else:
        for piece in pieces:
            yield from tokenizer.encode_batch([piece])


def _remove_abandoned(folder: Path) -> None:
    """Deletes what processes of this machine that are gone left half-written."""
    prefix = f"partial-{socket.gethostname()}-"
    for path in folder.glob(f"{prefix}*"):
        pid = int(path.name.removeprefix(prefix))
        if pid == os.getpid() or not _alive(pid):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
