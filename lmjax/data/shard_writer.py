"""Writes a folder of token shards (lmjax/data/token_shards.py), whole or not at all.

In: tokens in order, and the lengths of their documents. Out: files of equal size with their checksums, the index of
documents and the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmjax.data.token_shards import DOCUMENTS, MANIFEST, Manifest, ShardFile
from lmjax.errors import UserError

_EXAMPLES = 10  # messages of skipped records that the manifest keeps


class CannotWriteError(UserError):
    """A folder that shards cannot be written to: it is read-only, or its disk is full."""


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A partial folder, whose files move into `folder` at the end, its manifest last; after an error they are deleted.

    Of several processes that write the same at once the first one's files stay. Raises CannotWriteError.
    """
    partial = folder / f"partial-{socket.gethostname()}-{os.getpid()}"
    try:
        _remove_abandoned(folder)
        partial.mkdir(parents=True)
        yield partial
        if not (folder / MANIFEST).is_file():  # otherwise another process was first, with the same tokens
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):
                path.replace(folder / path.name)
    except OSError as error:
        raise CannotWriteError(
            f"{folder}: the shards cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class ShardWriter:
    """Appends tokens of `dtype` to shard files of `shard_tokens` each."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.files: list[ShardFile] = []
        self.tokens = self.documents = self.skipped = self.empty = 0
        self.examples: list[str] = []
        self.lengths: list[np.ndarray] = []
        self.text_lengths: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """Tokens [n] that follow on those before."""
        self.tokens += len(tokens)
        self._waiting.append(tokens)
        self._waiting_tokens += len(tokens)
        while self._waiting_tokens >= self.shard_tokens:
            self._flush(self.shard_tokens)

    def end_documents(self, lengths: np.ndarray, text_lengths: np.ndarray) -> None:
        """The next documents, int64 [documents]: how long each is in tokens, and in UTF-8 bytes."""
        self.documents += len(lengths)
        self.lengths.append(lengths)
        self.text_lengths.append(text_lengths)

    def leave_out(self, skipped: int, examples: Sequence[str], empty: int) -> None:
        """Records that were left out: bad ones, messages of the first of them, and documents without a character."""
        self.skipped += skipped
        self.empty += empty
        self.examples += examples[: _EXAMPLES - len(self.examples)]

    def finish(
        self, name: str, source: Mapping[str, object], *, fingerprint: str, vocab_size: int, eos_id: int
    ) -> None:
        """Writes the rest, the document index and the manifest. Raises UserError where there are no documents."""
        if not self.documents:
            left_out = f"{self.skipped} bad records skipped, {self.empty} empty"
            example = self.examples[0] if self.examples else "give a source with text"
            raise UserError(f"{name}: no text is left of {self.skipped + self.empty} documents ({left_out}); {example}")
        if self._waiting_tokens:
            self._flush(self._waiting_tokens)
        index = np.zeros((2, self.documents + 1), "<i8")
        index[0, 1:], index[1, 1:] = (
            np.cumsum(np.concatenate(self.lengths)),
            np.cumsum(np.concatenate(self.text_lengths)),
        )
        self._write(DOCUMENTS, index)
        Manifest(
            tokenizer=fingerprint,
            vocab_size=vocab_size,
            eos_id=eos_id,
            dtype=self.dtype.name,
            shard_tokens=self.shard_tokens,
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=int(index[1, -1]),
            skipped=self.skipped,
            skipped_examples=tuple(self.examples),
            empty=self.empty,
            source_name=name,
            source=dict(source),
            files=tuple(self.files),
        ).write(self.folder / MANIFEST)

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
