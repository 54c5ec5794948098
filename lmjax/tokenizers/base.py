"""What every tokenizer shares: the folder it is saved in, and the ids it accepts.

In: the kind of a tokenizer, a few JSON parameters and named files. Out: a folder of these files and
`lmjax_tokenizer.json`, which names the kind and holds the SHA-256 of each file, so that reading a damaged folder is an
error. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lmjax.errors import UserError, shortened
from lmjax.files import read_bytes, read_json, safe_name
from lmjax.tokenizers.pieces import Pieces, SpecialIds, joined

METADATA = "lmjax_tokenizer.json"
_FORMAT = 1


class NoTokenizerError(UserError):
    """A folder has no tokenizer, or one that lmjax does not support; its model can still be read."""


class NoTokensError(UserError):
    """A text holds a character or a byte for which the tokenizer has no token."""


@dataclass(frozen=True)
class Contents:
    """What a tokenizer is stored as."""

    kind: str
    parameters: Mapping[str, Any]
    files: Mapping[str, bytes]


class StoredTokenizer(ABC):
    """A tokenizer that can be written to a folder and read back with the same ids."""

    kind: str
    vocab_size: int
    eos_id: int
    lossless: bool  # different texts have different ids: no text is normalised, shortened or encoded as unknown

    special = SpecialIds()

    @abstractmethod
    def contents(self) -> Contents:
        """The parameters and files from which this tokenizer is loaded again."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises UserError for an id outside the vocabulary."""

    @abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens]. Raises TypeError or UnicodeEncodeError for what is not Unicode text."""

    @abstractmethod
    def _pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """The tokens of each text with their places. Raises as `_encode_batch`."""

    def byte_lengths(self) -> np.ndarray | None:
        """Bytes of text per id, int64 [vocab_size]; None where they do not add up to the bytes of a text."""
        return None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], without any special token.

        Raises UserError for a lone surrogate, NoTokensError for what the vocabulary cannot spell.
        """
        with _unicode(texts):
            return self._encode_batch(texts)

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """The ids of `encode_batch` with their spans in the original text and their words. Raises as it does."""
        with _unicode(texts):
            return self._pieces(texts)

    def word_pieces(self, words: Sequence[str], before: str = "") -> Pieces:
        """The tokens of each word, `words` being its number, and spans those in the word.

        before: text before each word but the first, which is in no span: " " for a tokenizer that knows words by the
          blank before them. A word may have no tokens.
        """
        each = self.pieces([before * (number > 0) + word for number, word in enumerate(words)])
        whole = joined(each)
        moved = np.maximum(whole.offsets - len(before) * (whole.words > 0)[:, None], 0)
        return Pieces(whole.ids, moved, whole.words)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def save(self, folder: Path) -> None:
        write_folder(folder, self.contents())

    def text_ids(self, ids: Sequence[int]) -> list[int]:
        """`ids` without end-of-text, which has no characters. Raises UserError for an id outside the vocabulary."""
        ids_T = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = ids_T[(ids_T < 0) | (ids_T >= self.vocab_size)]
        if outside.size:
            raise UserError(
                f"token id {outside[0]}: expected 0 to {self.vocab_size - 1}, the ids of this {self.kind} tokenizer; "
                "decode with the tokenizer that the ids were made with"
            )
        return ids_T[ids_T != self.eos_id].tolist()


def refusal(tokenizer: Any, text: str) -> str:
    """Why a text has no tokens; "" where it has them."""
    try:
        tokenizer.encode_batch([text])
    except NoTokensError as error:
        return str(error)
    return ""


@contextmanager
def _unicode(texts: Sequence[str]) -> Iterator[None]:
    """Raises UserError for a text with a lone surrogate, which a library refuses without a reason."""
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        _require_unicode(texts)
        raise


def _require_unicode(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"text {number} of {len(texts)}: expected Unicode text, found the lone surrogate "
                f"U+{ord(text[error.start]):04X} at character {error.start}; it was not read as UTF-8"
            ) from error


def write_folder(folder: Path, contents: Contents) -> None:
    """Writes the files first and the metadata last: a folder with metadata is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)
    metadata = {
        "format": _FORMAT,
        "kind": contents.kind,
        "parameters": dict(contents.parameters),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.files.items()},
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=True) + "\n")


class _Metadata(TypedDict):
    format: int
    kind: str
    parameters: dict[str, Any]
    sha256: dict[str, str]


def read_folder(folder: Path) -> Contents:
    """The contents that `write_folder` wrote. Raises UserError where they are missing, damaged or of a newer format.

    Only plain files in the folder itself are read: a path, a link or a device is an error.
    """
    path = Path(folder) / METADATA
    metadata = read_json(path, _Metadata, "save the tokenizer again")
    if metadata["format"] != _FORMAT:
        raise UserError(f"{path}: format = {metadata['format']!r}: expected {_FORMAT}; read it with a newer lmjax")
    files = {}
    for name, digest in metadata["sha256"].items():
        files[name] = read_own_file(path.parent, name, path)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise UserError(
                f"{path.parent / name}: expected the SHA-256 {shortened(digest[:12])}... that {METADATA} gives; "
                f"the file was damaged or edited: copy the folder again, or remove {METADATA} to read the other files"
            )
    return Contents(metadata["kind"], metadata["parameters"], files)


def read_own_file(folder: Path, name: str, where: object) -> bytes:
    """The bytes of the plain file `name` of the folder. Raises UserError, which names `where`, for anything else."""
    path = folder / safe_name(name, where)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: expected a plain file, found a folder or a device; restore the file")
    if path.exists() and path.resolve().parent != folder.resolve():
        raise UserError(f"{path}: a link to {path.resolve()}; expected a file of this folder; copy the file into it")
    return read_bytes(path)
