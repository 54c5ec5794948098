"""Text to token ids and back, behind one protocol.

In: the settings of a tokenizer and, to train one, texts; or a folder or published files. Out: a `Tokenizer`. Kinds
"byte", "sentencepiece", "bpe" (byte-level) and "wordpiece" are made here; they encode the names of special tokens in
data as ordinary text. Kind "huggingface" is any folder that transformers reads, with the ids that transformers gives.
`eos_id` separates documents; batches need no padding id, since padding is segment 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lmjax.errors import UserError, nearest, require, shortened
from lmjax.files import read_bytes
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers import base
from lmjax.tokenizers.base import NoTokenizerError
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.byte_level_bpe import as_pair, load_bpe, saved_bpe, train_bpe
from lmjax.tokenizers.huggingface import BPE, HUGGINGFACE, WORDPIECE, HuggingFaceTokenizer
from lmjax.tokenizers.huggingface_config import PIPELINE
from lmjax.tokenizers.huggingface_folder import is_huggingface, read_huggingface
from lmjax.tokenizers.long_words import without_long_words
from lmjax.tokenizers.pieces import Pieces, SpecialIds
from lmjax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from lmjax.tokenizers.wordpiece import as_vocabulary, load_wordpiece, saved_wordpiece, train_wordpiece

_EXPECTED = (
    "a folder that lmjax saved, a Hugging Face folder with tokenizer.json, a .model file, a vocab.txt, or a folder "
    "with vocab.json or encoder.json and merges.txt or vocab.bpe"
)
_ANY = ("byte", HUGGINGFACE)  # settings of which a Hugging Face folder is read as transformers reads it


class Tokenizer(Protocol):
    """Text to ids and back."""

    kind: str
    vocab_size: int  # ids are 0 to vocab_size - 1
    eos_id: int  # separates documents; decodes to nothing
    lossless: bool  # different texts have different ids: no text is normalised, shortened or encoded as unknown
    special: SpecialIds

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], without special tokens."""
        ...

    def pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """The ids of `encode_batch` with their spans in the original text and the numbers of their words."""
        ...

    def word_pieces(self, words: Sequence[str], before: str = "") -> Pieces:
        """The tokens of each word, `words` being its number; `before` is text before each word but the first."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text: exactly the one encoded for byte, bpe, and SentencePiece trained here with byte fallback."""
        ...

    def byte_lengths(self) -> np.ndarray | None:
        """Bytes of UTF-8 text per id, int64 [vocab_size]; None where they depend on the context of the id.

        Over the ids of a text they add up to the bytes of the text. The end of a text has 0.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the files from which `load_tokenizer(folder)` reads the same tokenizer."""
        ...


_FROM_CONTENTS: dict[str, Callable[[base.Contents, object], Tokenizer]] = {
    "byte": lambda contents, where: ByteTokenizer(),
    "sentencepiece": SentencePieceTokenizer.from_contents,
    BPE: saved_bpe,
    WORDPIECE: saved_wordpiece,
    HUGGINGFACE: lambda contents, where: HuggingFaceTokenizer(contents.files, contents.parameters, where),
}
_AS_PUBLISHED = {BPE: as_pair, WORDPIECE: as_vocabulary}


def load_tokenizer(
    path: str | Path,
    *,
    kind: str = HUGGINGFACE,
    lowercase: bool = True,
    user_symbols: Sequence[str] = (),
    rows: int | None = None,
) -> Tokenizer:
    """A tokenizer from a folder that `save` wrote, from a Hugging Face folder, or from published files.

    Args:
      path: the folder or file.
      kind: which files of a Hugging Face folder are read: "bpe", "sentencepiece" and "wordpiece" take the published
        vocabulary alone, where there is one.
      lowercase: of a published `vocab.txt`, which does not tell; a saved folder does.
      user_symbols: further strings that are always one token, for published BPE and WordPiece files.
      rows: of the model's table, for a Hugging Face folder: added tokens beyond them have no ids.

    Raises:
      UserError: something is missing, damaged or of an unknown kind; NoTokenizerError where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected {_EXPECTED}; check tokenizer.path")
    if (path / base.METADATA).exists() or path.name == base.METADATA:
        _refuse_symbols(user_symbols, f"{path} keeps the ones it was saved with")
        return _load_saved(path if path.is_dir() else path.parent)
    folder = path.parent if path.name == PIPELINE else path
    if is_huggingface(folder) and (kind in _ANY or not _published(folder, kind)):
        _refuse_symbols(user_symbols, f"{folder} has its own added tokens")
        return read_huggingface(folder, rows)
    if vocabulary := _first(path, ["vocab.json", "encoder.json"]):
        merges = _first(vocabulary.parent, ["merges.txt", "vocab.bpe"])
        if merges is None:
            raise UserError(f"{vocabulary.parent}: expected merges.txt or vocab.bpe beside {vocabulary.name}; copy it")
        return load_bpe(vocabulary, merges, user_symbols)
    models = sorted(path.glob("*.model")) if path.is_dir() else [path] if path.suffix == ".model" else []
    if len(models) > 1:
        raise UserError(f"{path}: expected one .model file, found {[model.name for model in models]}; name one of them")
    if models:
        _refuse_symbols(user_symbols, f"{models[0]} fixes its own when it is trained")
        return SentencePieceTokenizer(read_bytes(models[0]), models[0])
    if vocabulary := _first(path, ["vocab.txt"]) or (path if path.suffix == ".txt" else None):
        return load_wordpiece(vocabulary, lowercase, user_symbols)
    raise NoTokenizerError(f"{path}: found no tokenizer in it; expected {_EXPECTED}; check tokenizer.path")


def build_tokenizer(settings: TokenizerSettings, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a recipe: loaded from `settings.path`, or trained on `texts`.

    Training reads at most `settings.training_bytes` of UTF-8 from `texts`; a loaded tokenizer reads none. The byte
    tokenizer has its own vocabulary size.

    Raises:
      UserError: the files are of another kind, or the text does not support the vocabulary size.
    """
    if settings.kind == "byte" and not settings.path:
        _refuse_symbols(settings.user_symbols, "the byte tokenizer has none")
    if settings.path:
        loaded = load_tokenizer(
            settings.path, kind=settings.kind, lowercase=settings.lowercase, user_symbols=settings.user_symbols
        )
        if settings.kind not in ("byte", loaded.kind):  # "byte" is the default, and there are no files of that kind
            raise UserError(
                f"tokenizer.path = {settings.path!r} holds a {loaded.kind!r} tokenizer: expected {settings.kind!r}; "
                f"set tokenizer.kind to {loaded.kind!r}"
            )
        _check_entries(settings, loaded)
        return loaded
    if settings.kind == "byte":
        return ByteTokenizer()
    if settings.kind == HUGGINGFACE:
        raise UserError("tokenizer.path = '': expected a folder for tokenizer.kind 'huggingface'; name one")
    train = {"sentencepiece": train_sentencepiece, "bpe": train_bpe, "wordpiece": train_wordpiece}[settings.kind]
    read = list(without_long_words(_at_most(settings.training_bytes, texts)))
    if not any(text.strip() for text in read):
        raise UserError(
            f"the text to train a {settings.kind} tokenizer on: expected some, found none; check data.train"
        )
    return train(settings, read)


def published_contents(tokenizer: Tokenizer) -> base.Contents:
    """Parameters and files of a tokenizer; those of a byte-level BPE or a WordPiece as they are published."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.kind in _AS_PUBLISHED:
        return _AS_PUBLISHED[tokenizer.kind](tokenizer)
    assert isinstance(tokenizer, base.StoredTokenizer)
    return tokenizer.contents()


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256, in hexadecimal, over the folder of `published_contents`: equal for tokenizers that give equal ids.

    Token shards are identified by it: it does not depend on the format in which a tokenizer is saved.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        base.write_folder(Path(folder), published_contents(tokenizer))
        for path in sorted(Path(folder).iterdir()):
            data = path.read_bytes()
            digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _check_entries(settings: TokenizerSettings, loaded: Tokenizer) -> None:
    """Raises UserError where the settings give another vocabulary size than that of the loaded tokenizer."""
    default = next(field.default for field in dataclasses.fields(settings) if field.name == "vocab_size")
    fits = settings.vocab_size in (default, loaded.vocab_size)
    expected = f"{loaded.vocab_size}, the entries of {settings.path}"
    require(fits, "tokenizer.vocab_size", settings.vocab_size, expected, f"use {loaded.vocab_size}")


def _load_saved(folder: Path) -> Tokenizer:
    contents = base.read_folder(folder)
    if contents.kind not in _FROM_CONTENTS:
        known = nearest(str(contents.kind), _FROM_CONTENTS)
        raise UserError(f"{folder / base.METADATA}: kind = {shortened(contents.kind)}: expected a known kind; {known}")
    return _FROM_CONTENTS[contents.kind](contents, folder)


def _published(folder: Path, kind: str) -> bool:
    """Whether the folder has the published vocabulary file of this kind."""
    patterns = {"bpe": ("vocab.json", "encoder.json"), "sentencepiece": ("*.model",), "wordpiece": ("vocab.txt",)}
    return any(True for pattern in patterns.get(kind, ()) for _ in folder.glob(pattern))


def _first(path: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that is in the folder `path`, or `path` itself where it is a file of that name."""
    candidates = [path / name for name in names] if path.is_dir() else [path] if path.name in names else []
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _refuse_symbols(symbols: Sequence[str], reason: str) -> None:
    if symbols:
        raise UserError(f"tokenizer.user_symbols = {tuple(symbols)!r}: expected none, as {reason}; leave them out")


def _at_most(limit: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        data = text.encode("utf-8")
        if len(data) >= limit:
            yield data[:limit].decode("utf-8", errors="ignore")  # the limit may fall inside a character
            return
        yield text
        limit -= len(data)
