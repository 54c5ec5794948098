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

import numpy as np

from lmjax.errors import UserError

MANIFEST = "manifest.json"
DOCUMENTS = "documents.bin"
FORMAT = "lmjax token shards 1"


@dataclass(frozen=True)
class ShardFile:
    """One file of the folder."""

    name: str
    bytes: int
    sha256: str


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
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError where the folder holds no manifest, or one that this version cannot read."""
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder}: no token shards here ({MANIFEST} is missing); `lmjax data prepare` writes them")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise UserError(
                    f"{path}: format {values.get('format')!r}, expected {FORMAT!r}; prepare the shards again"
                )
            files = tuple(ShardFile(**file) for file in values.pop("files"))
            examples = tuple(values.pop("skipped_examples"))
            return cls(**values, files=files, skipped_examples=examples)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: a damaged manifest ({error}); prepare the shards again") from None


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

    def starts_between(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where documents begin in R ranges: (range, position) pairs with first[range] < position <= last[range]."""
        low = np.searchsorted(self._starts, first + self.begin, side="right")
        high = np.searchsorted(self._starts, last + self.begin, side="right")
        counts = high - low
        range_of = np.repeat(np.arange(len(first)), counts)
        within = np.arange(len(range_of)) - np.repeat(np.cumsum(counts) - counts, counts)
        return range_of, self._starts[low[range_of] + within] - self.begin

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

    def verify(self) -> None:
        """Reads every file and compares its checksum; raises UserError naming the first that differs."""
        for file in self.manifest.files:
            self._check_size(file)
            with (self.folder / file.name).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file.sha256:
                raise UserError(
                    f"{self.folder / file.name}: sha256 {found}, expected {file.sha256}; the file is damaged: prepare "
                    "or copy the shards again"
                )

    def _check_size(self, file: ShardFile) -> None:
        path = self.folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.bytes:
            found = "is missing" if size is None else f"holds {size} bytes"
            raise UserError(f"{path}: {found}, expected {file.bytes} bytes; prepare or copy the shards again")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file as a read-only array; a plain view, whose slices cost less than those of np.memmap."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
