"""Turns a source of documents into token shards, in parallel where it is big.

Documents and a tokenizer go in; a folder of checksummed files comes out (lmjax/data/token_shards.py), the same for any
number of workers. Worker processes encode runs of documents; this process joins their tokens and writes them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict, Unpack

import numpy as np

from lmjax.data.documents import BadRecordError, Documents
from lmjax.data.shard_writer import ShardWriter, published
from lmjax.data.sources import open_source
from lmjax.data.token_shards import MANIFEST, TokenShards
from lmjax.data.verified import verify_once
from lmjax.errors import UserError
from lmjax.files import user_path
from lmjax.settings import SourceSettings
from lmjax.tokenizers.base import NoTokensError, refusal

__all__ = ["TokenShards", "open_shards", "prepare_shards"]

SHARD_TOKENS = 1 << 27  # 256 MiB of uint16
LONGEST_TEXT = 1 << 24  # characters encoded at once; a longer document is encoded in pieces that end where lines end
_RUN_BYTES = 1 << 21  # about how much text a worker encodes at a time
_BIG_BYTES = 1 << 24  # from here on workers pay for their start

Report = Callable[[int, int], None]  # documents done, documents in all
Say = Callable[[str], None]


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
    with published(folder) as partial:
        writer, before, identity = (
            ShardWriter(partial, _dtype(tokenizer), shard_tokens),
            _times(source),
            source.identity,
        )
        for run in _encoded(source, tokenizer, workers, report):
            writer.add(run.tokens)
            writer.end_documents(run.lengths, run.text_lengths)
            writer.leave_out(len(run.skipped), run.skipped, run.empty)
        writer.finish(
            *(source.name, identity | {"shard_tokens": shard_tokens}),
            fingerprint=fingerprint,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
        )
        if _times(source) != before:
            raise UserError(f"{source.name}: changed while it was encoded; run the same command again")
    return TokenShards(folder, fingerprint)


def check_source(
    source: Documents, made_from: Mapping[str, object], where: Path, fix: str, shard_tokens: int = SHARD_TOKENS
) -> None:
    """Raises UserError naming `where` unless the source is the one that shards were made from."""
    wanted = source.identity | {"shard_tokens": shard_tokens}
    keys = dict.fromkeys([*wanted, "share"])  # shards of a part say of which
    differing = [key for key in keys if made_from.get(key) != wanted.get(key)]
    if differing:
        raise UserError(
            f"{where}: these shards were made from another source, which differs in {', '.join(differing)}; {fix}"
        )


def _times(source: Documents) -> list[int]:
    """When each of the source's files was last changed; 0 for one that is gone."""
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in source.paths]


def _encoded(source: Documents, tokenizer: Encoder, workers: int | None, report: Report | None) -> Iterator[Encoded]:
    """The source in runs of documents, in order."""
    total = len(source)
    per_run = max(1, min(total, total * _RUN_BYTES // max(1, source.selected_bytes)))
    runs = [(first, min(total, first + per_run)) for first in range(0, total, per_run)]
    if workers is None:
        workers = os.cpu_count() or 1 if source.selected_bytes >= _BIG_BYTES else 1
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
    try:
        return _encoded_texts(tokenizer, *source.read(first, last))
    except NoTokensError:
        return _encoded_texts(tokenizer, *_with_tokens(source, tokenizer, first, last))


def _with_tokens(source: Documents, tokenizer: Encoder, first: int, last: int) -> tuple[list[str], list[str]]:
    """`source.read` of these documents, where one that the tokenizer cannot encode is a bad record, too."""
    kept: list[str] = []
    messages: list[str] = []
    for index in range(first, last):
        texts, skipped = source.read(index, index + 1)
        reasons = [reason for text in texts if (reason := refusal(tokenizer, text))]
        said = [f"{source.name}: document {index + 1}: {reason}" for reason in reasons]
        if said and source.settings.on_bad_record == "error":
            raise BadRecordError(f'{said[0]}; or set source.on_bad_record = "skip"')
        kept += texts if not reasons else []
        messages += skipped + said
    return kept, messages


def _encoded_texts(tokenizer: Encoder, texts: list[str], skipped: list[str]) -> Encoded:
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
