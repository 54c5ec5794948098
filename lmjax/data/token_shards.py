"""Token shards: the tokens of a source's documents in a folder of memory-mapped files, and their manifest.

A folder holds `tokens-00000.bin` and so on (little-endian uint16 or uint32, one after the other; every file but the
last holds `shard_tokens`), `documents.bin` (int64 [2, documents + 1]: where each document begins, in tokens and in
UTF-8 bytes of text) and `manifest.json`, which is written last. Each document ends with the end-of-text token.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from lmjax.data.token_strings import within
from lmjax.errors import UserError, shortened
from lmjax.files import read_json, safe_name, unreadable, write_whole

MANIFEST = "manifest.json"
DOCUMENTS = "documents.bin"
FORMAT = "lmjax token shards 1"
_READ_BYTES = 1 << 24


@dataclass(frozen=True)
class ShardFile:
    """One file of the folder."""

    name: str
    bytes: int
    sha256: str


class _WrittenFile(TypedDict):
    name: str
    bytes: int
    sha256: str


class _Written(TypedDict):
    """The manifest as JSON."""

    tokenizer: str
    vocab_size: int
    eos_id: int
    dtype: Literal["uint16", "uint32"]
    shard_tokens: int
    tokens: int
    documents: int
    text_bytes: int
    skipped: int
    skipped_examples: list[str]
    empty: int
    source_name: str
    source: dict[str, Any]
    files: list[_WrittenFile]
    format: str


@dataclass(frozen=True)
class Manifest:
    """What the folder holds."""

    tokenizer: str  # its fingerprint
    vocab_size: int
    eos_id: int
    dtype: str  # "uint16" or "uint32"
    shard_tokens: int
    tokens: int
    documents: int
    text_bytes: int  # of the documents in UTF-8
    skipped: int  # bad records
    skipped_examples: tuple[str, ...]  # the first few, with file and line
    empty: int  # documents without a character, which are left out
    source_name: str
    source: dict[str, object]  # what the source is known by
    files: tuple[ShardFile, ...]  # the token files in order, then the document index
    format: str = FORMAT

    def write(self, path: Path) -> None:
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError where the folder holds no manifest, or one that this version cannot read."""
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder}: no token shards here ({MANIFEST} is missing); `lmjax data prepare` writes them")
        fix = "prepare the shards again"
        written = read_json(path, dict[str, Any], fix).get("format")
        if written != FORMAT:
            raise UserError(f"{path}: format {shortened(written)}, expected {FORMAT!r}; {fix}")
        values = read_json(path, _Written, fix)
        files = tuple(
            ShardFile(safe_name(file["name"], path), file["bytes"], file["sha256"]) for file in values["files"]
        )
        known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        manifest = cls(**known | {"files": files, "skipped_examples": tuple(values["skipped_examples"])})
        manifest._check(path, fix)
        return manifest

    def _check(self, path: Path, fix: str) -> None:
        """Raises UserError where the numbers do not fit together."""
        width = 2 if self.dtype == "uint16" else 4
        counts = [file.bytes // width for file in self.files[:-1]]
        cut = bool(counts) and all(n == self.shard_tokens for n in counts[:-1]) and 0 < counts[-1] <= self.shard_tokens
        wanted = f"{self.tokens:,} tokens in files of {self.shard_tokens:,}, then {DOCUMENTS}"
        if not cut or sum(counts) != self.tokens or self.files[-1].name != DOCUMENTS:
            raise UserError(f"{path}: files = {shortened(self.files)}: expected {wanted}; {fix}")
        if self.files[-1].bytes != 16 * (self.documents + 1):
            raise UserError(f"{path}: documents = {self.documents:,}: expected as many as {DOCUMENTS} holds; {fix}")


class TokenShards:
    """The tokens of a folder, or of a part of its documents, memory-mapped and read by position.

    tokens: how many there are; len: how many documents.
    """

    def __init__(self, folder: Path | str, tokenizer: str | None = None) -> None:
        """Checks the sizes of all files. `tokenizer`: the fingerprint that the shards must have been made with."""
        self.folder = Path(folder)
        self.manifest = manifest = Manifest.read(self.folder)
        if tokenizer is not None and tokenizer != manifest.tokenizer:
            raise UserError(
                f"{self.folder / MANIFEST}: these shards were made with tokenizer {manifest.tokenizer}, expected "
                f"{tokenizer}; prepare them again with this tokenizer, or use the one they were made with"
            )
        for file in manifest.files:
            self._check_size(file)
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._shards = [_map(self.folder / file.name, dtype) for file in manifest.files[:-1]]
        index = _map(self.folder / DOCUMENTS, np.dtype("<i8")).reshape(2, -1)
        self._starts = index[0]
        self.begin, self.end = 0, manifest.tokens  # the tokens of the folder that belong to this part

    @property
    def name(self) -> str:
        return f"{self.manifest.source_name} ({self.folder})"

    @property
    def tokens(self) -> int:
        return self.end - self.begin

    def __len__(self) -> int:
        return len(self._starts) - 1

    def part(self, begin: float, end: float) -> TokenShards:
        """The shards from one fraction of the documents to another, or of the tokens of a single document."""
        part = copy.copy(self)
        if len(self) == 1:
            part.begin = self.begin + round(self.tokens * begin)
            part.end = self.begin + round(self.tokens * end)
        else:
            first, last = round(len(self) * begin), round(len(self) * end)
            part._starts = self._starts[first : last + 1]
            part.begin, part.end = int(part._starts[0]), int(part._starts[-1])
        if part.tokens == 0:
            raise UserError(
                f"{self.name}: source.begin, source.end = {begin}, {end} select none of its {len(self)} documents; "
                "widen them"
            )
        return part

    def document_bounds(self) -> np.ndarray:
        """int64 [documents + 1]: where each document begins, and the end of the last."""
        bounds = self._starts if self.begin == 0 else self._starts - self.begin
        if len(self) == 1:
            return np.array([0, self.tokens], np.int64)
        return bounds

    def document_stops(self) -> np.ndarray:
        """int64 [documents]: where the text of each document ends. A part of a single document has no end-of-text."""
        ends = self.document_bounds()[1:]
        return ends - (self.take(ends - 1) == self.manifest.eos_id)

    def starts_between(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where documents begin in R ranges: (range, position) pairs with first[range] < position <= last[range]."""
        low = np.searchsorted(self._starts, first + self.begin, side="right")
        high = np.searchsorted(self._starts, last + self.begin, side="right")
        counts = high - low
        range_of = np.repeat(np.arange(len(first)), counts)
        return range_of, self._starts[low[range_of] + within(counts)] - self.begin

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document, int32, the end-of-text token last."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: document {index} of {len(self)}")
        first, last = (int(bound) for bound in self.document_bounds()[index : index + 2])
        return self.windows(np.array([first]), last - first)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [R, length]: the tokens from each of starts [R] on; 0 beyond the last token."""
        out = np.empty((len(starts), length), np.int32)
        for row, start in zip(out, (starts + self.begin).tolist(), strict=True):
            shard, place = divmod(start, self.manifest.shard_tokens)
            filled = 0
            while filled < length:
                left = min(length - filled, self.end - start - filled)
                if left <= 0:
                    row[filled:] = 0
                    break
                piece = self._shards[shard][place : place + left]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard, place = shard + 1, 0
        return out

    def take(self, positions: np.ndarray) -> np.ndarray:
        """int32 [n]: the tokens at positions [n], which are in ascending order."""
        if not len(positions):
            return np.zeros(0, np.int32)
        positions = positions + self.begin
        size = self.manifest.shard_tokens
        first, last = int(positions[0]) // size, int(positions[-1]) // size
        cuts = np.searchsorted(positions, np.arange(first, last + 2) * size)
        out = np.empty(len(positions), np.int32)
        for index in np.flatnonzero(np.diff(cuts)).tolist():
            here = slice(cuts[index], cuts[index + 1])
            out[here] = self._shards[first + index][positions[here] - (first + index) * size]
        return out

    def verify(self, entries: int | None = None) -> None:
        """Reads every file; raises UserError naming the first whose checksum differs, or with an id from `entries` on.

        entries: of the tokenizer; without it ids are not looked at.
        """
        for file in self.manifest.files:
            self._check_size(file)
            verify_file(self.folder / file.name, file.sha256, self.dtype_of(file), entries)

    def dtype_of(self, file: ShardFile) -> np.dtype | None:
        """Of the tokens in a file; None for the document index."""
        return None if file.name == DOCUMENTS else np.dtype(self.manifest.dtype).newbyteorder("<")

    def _check_size(self, file: ShardFile) -> None:
        path = self.folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            found = "is missing" if size is None else f"holds {size} bytes"
            raise UserError(f"{path}: {found}, expected {file.bytes} bytes; prepare or copy the shards again")


def verify_file(path: Path, sha256: str, dtype: np.dtype | None, entries: int | None) -> None:
    """Reads the file once. Raises UserError where its checksum differs, or where a token's id is not below `entries`.

    dtype: of the tokens; None for a file that holds none.
    """
    digest, read, outside = hashlib.sha256(), 0, ""
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb") as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if dtype is not None and entries is not None and not outside:
                    outside = _outside(np.frombuffer(buffer[: count - count % dtype.itemsize], dtype), read, entries)
                read += count // (dtype.itemsize if dtype is not None else 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if digest.hexdigest() != sha256:
        beside = f", and {outside}" if outside else ""
        raise UserError(
            f"{path}: sha256 {digest.hexdigest()}, expected {sha256}{beside}; the file is damaged: prepare or copy the "
            "shards again"
        )
    if outside:
        raise UserError(f"{path}: {outside}; prepare the shards again with this tokenizer")


def _outside(ids: np.ndarray, first: int, entries: int) -> str:
    """The first id that the tokenizer does not have, in words; "" where there is none."""
    if not len(ids) or ids.max() < entries:
        return ""
    place = int(np.argmax(ids >= entries))
    return f"token {first + place:,} is {ids[place]}: expected ids below the tokenizer's {entries:,} entries"


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file as a read-only array; a plain view, whose slices cost less than those of np.memmap."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
