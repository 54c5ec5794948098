"""Byte-level BPE (Radford et al. 2019, section 2.2): pairs of bytes merged by frequency, as GPT-2 and GPT-3 read text.

A vocabulary and its merges come in, trained here or published; the ids are the published ones. Every text comes back
from its ids, since the alphabet is the 256 bytes, each written as one printable character in the vocabulary file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text, read_json, read_text
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import Contents, NoTokenizerError, StoredTokenizer

END_OF_TEXT = "<|endoftext|>"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_VERSION_LINE = "#version: 0.2"  # the first line of every published merges file


def byte_characters() -> dict[str, int]:
    """The printable character of each byte: itself where it is printable Latin-1, else the next one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = byte_characters()


class _Parameters(TypedDict, total=False):
    user_symbols: list[str]


class BytePairTokenizer(StoredTokenizer):
    """Byte-level BPE.

    Args:
      vocabulary: token to id; ids are 0 to n-1. Without "<|endoftext|>" one id is added for it.
      merges: the pairs, most frequent first.
      user_symbols: strings that are always one token; those not in the vocabulary are added after its last id.
      where: names the vocabulary in errors.

    The string "<|endoftext|>" inside a text is ordinary text: only the loader places the id `eos_id`.
    """

    kind = "bpe"
    lossless = True  # its vocabulary holds all 256 bytes, and nothing is normalised

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        user_symbols: Sequence[str] = (),
        where: object = "the BPE vocabulary",
    ) -> None:
        self._vocabulary = _complete(vocabulary, user_symbols, where)
        self._added = [symbol for symbol in user_symbols if symbol not in vocabulary]
        self._merges = list(merges)
        self._symbols = tuple(user_symbols)
        self.vocab_size = len(self._vocabulary)
        self.eos_id = self._vocabulary[END_OF_TEXT]
        self._bytes = [_token_bytes(token, self._symbols) for token in self._vocabulary]
        try:
            model = models.BPE(self._vocabulary, self._merges)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where}: expected merges of its own tokens ({error}); use the pair of files") from error
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.add_tokens([tokenizers.AddedToken(symbol, normalized=False) for symbol in self._symbols])

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join([self._bytes[index] for index in self.text_ids(ids)]).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        lengths = np.array([len(token) for token in self._bytes], np.int64)
        lengths[self.eos_id] = 0
        return lengths

    def contents(self) -> Contents:
        own = {token: index for token, index in self._vocabulary.items() if token not in self._added}
        vocabulary = json.dumps(own, ensure_ascii=False).encode()
        merges = "\n".join([_VERSION_LINE, *(f"{left} {right}" for left, right in self._merges), ""]).encode()
        return Contents(self.kind, {"user_symbols": list(self._symbols)}, {_VOCABULARY: vocabulary, _MERGES: merges})

    @classmethod
    def from_contents(cls, contents: Contents, where: object) -> BytePairTokenizer:
        check_form(dict(contents.parameters), _Parameters, where, "parameters")
        vocabulary = decode_json(decode_text(contents.files.get(_VOCABULARY, b""), where), where)
        merges = parse_merges(decode_text(contents.files.get(_MERGES, b""), where), where)
        return cls(vocabulary, merges, contents.parameters.get("user_symbols", ()), where)


def load_bpe(vocabulary: Path, merges: Path, user_symbols: Sequence[str] = ()) -> BytePairTokenizer:
    """A published pair of files: `vocab.json` or `encoder.json`, and `merges.txt` or `vocab.bpe`."""
    pairs = parse_merges(read_text(merges), merges)
    return BytePairTokenizer(read_json(vocabulary), pairs, user_symbols, vocabulary)


def train_bpe(settings: TokenizerSettings, texts: Iterable[str]) -> BytePairTokenizer:
    """Merges pairs that occur at least twice until there are `settings.vocab_size` ids, the end of text last.

    Raises UserError when the text does not support that many, with the largest number that it does.
    """
    reserved = len({END_OF_TEXT, *settings.user_symbols})
    least = len(_BYTES) + reserved
    if settings.vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected at least {least}, the 256 bytes and {reserved} "
            f"symbols; set it to {least} or more"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - reserved,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(_BYTES),
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    supported = len(model["vocab"]) + reserved
    if supported < settings.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected at most {supported}, all that this text supports; "
            f"set it to {supported} or less, or train on more text"
        )
    return BytePairTokenizer(model["vocab"], [(left, right) for left, right in model["merges"]], settings.user_symbols)


def _complete(vocabulary: Mapping[str, int], symbols: Sequence[str], where: object) -> dict[str, int]:
    """The vocabulary in the order of its ids, with the end of text and the symbols added where they are missing."""
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else []
    if not ids or not all(type(index) is int for index in ids) or sorted(ids) != list(range(len(ids))):
        raise UserError(f"{where}: expected a JSON object from tokens to the ids 0 to n-1; use a published vocab.json")
    missing = [character for character in _BYTES if character not in vocabulary]
    if missing:
        raise NoTokenizerError(
            f"{where}: expected all 256 bytes of a byte-level BPE vocabulary, {len(missing)} are missing; "
            "a vocabulary of another kind (GPT-1's, for one) does not load as bpe"
        )
    complete = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    for symbol in symbols:
        taken = symbol in complete and _token_bytes(symbol, ()) != symbol.encode()
        if taken or symbol in ("", END_OF_TEXT):
            raise UserError(
                f"tokenizer.user_symbols holds {symbol!r}, which {where} uses for something else; choose another string"
            )
    for token in (END_OF_TEXT, *symbols):
        complete.setdefault(token, len(complete))
    return complete


def _token_bytes(token: str, symbols: Sequence[str]) -> bytes:
    if token in symbols or not all(character in _BYTES for character in token):
        return token.encode()
    return bytes([_BYTES[character] for character in token])


def parse_merges(text: str, where: object) -> list[tuple[str, str]]:
    """The pairs of a merges.txt."""
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"{where}:{number}: {shortened(line)}: expected two tokens and one blank; copy the file again"
            )
        merges.append((pair[0], pair[1]))
    return merges
