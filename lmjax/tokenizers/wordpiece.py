"""WordPiece (Devlin et al. 2018, section 3): words split greedily into the longest known pieces, as BERT reads text.

A vocabulary of one token per line comes in, trained here or published. Text is cleaned, Chinese characters and
punctuation stand alone, and "uncased" lowers case and strips accents first, so decoding gives a tidy text and not the
original one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_text, read_text
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import Contents, StoredTokenizer

_FILE = "vocab.txt"
_UNKNOWN, _SEPARATOR = "[UNK]", "[SEP]"
_PADDING = "[PAD]"
_SPECIAL = (_PADDING, _UNKNOWN, "[CLS]", _SEPARATOR, "[MASK]")
_CONTINUED = "##"
_LONGEST_WORD = 100  # characters; a longer word is [UNK], as in the published tokenizer
_ALPHABET = 8000  # characters that training keeps, the most frequent ones; rarer ones become [UNK]


class _Parameters(TypedDict, total=False):
    lowercase: bool
    user_symbols: list[str]


class WordPieceTokenizer(StoredTokenizer):
    """WordPiece.

    Args:
      tokens: the vocabulary, in the order of its ids; it holds [UNK] and [SEP], and [SEP] is the end of a text.
      lowercase: the uncased convention: lower case, no accents.
      user_symbols: strings that are always one token, looked for before cleaning; new ones follow the last id.
      where: names the vocabulary in errors.

    A special token's name inside a text, such as "[SEP]", is ordinary text.
    """

    kind = "wordpiece"
    lossless = False  # blanks are dropped, and words without pieces become [UNK]

    def __init__(
        self,
        tokens: Sequence[str],
        lowercase: bool,
        user_symbols: Sequence[str] = (),
        where: object = "the WordPiece vocabulary",
    ) -> None:
        _check_symbols(user_symbols)
        _check_vocabulary(tokens, where)
        self._tokens = list(dict.fromkeys((*tokens, *user_symbols)))
        self._lowercase, self._symbols = lowercase, tuple(user_symbols)
        self.vocab_size = len(self._tokens)
        self.eos_id = self._tokens.index(_SEPARATOR)
        self.pad_id = self._tokens.index(_PADDING) if _PADDING in self._tokens else None
        ids = {token: index for index, token in enumerate(self._tokens)}
        model = models.WordPiece(ids, unk_token=_UNKNOWN, max_input_chars_per_word=_LONGEST_WORD)
        self._tokenizer = _pipeline(model, lowercase)
        self._tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUED, cleanup=True)
        self._tokenizer.add_tokens([tokenizers.AddedToken(symbol, normalized=False) for symbol in self._symbols])

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(self.text_ids(ids), skip_special_tokens=False)

    def contents(self) -> Contents:
        parameters = {"lowercase": self._lowercase, "user_symbols": list(self._symbols)}
        return Contents(self.kind, parameters, {_FILE: "\n".join([*self._tokens, ""]).encode()})

    @classmethod
    def from_contents(cls, contents: Contents, where: object) -> WordPieceTokenizer:
        tokens = parse_vocabulary(decode_text(contents.files.get(_FILE, b""), where), where)
        parameters = contents.parameters
        check_form(dict(parameters), _Parameters, where, "parameters")
        return cls(tokens, parameters.get("lowercase", True), parameters.get("user_symbols", ()), where)


def load_wordpiece(path: Path, lowercase: bool, user_symbols: Sequence[str] = ()) -> WordPieceTokenizer:
    """A published `vocab.txt`."""
    return WordPieceTokenizer(parse_vocabulary(read_text(path), path), lowercase, user_symbols, path)


def train_wordpiece(settings: TokenizerSettings, texts: Iterable[str]) -> WordPieceTokenizer:
    """Learns `settings.vocab_size` tokens, BERT's five special ones first. The same texts give the same ids.

    Raises UserError when the text does not support that many, with the nearest number that it does.
    """
    _check_symbols(settings.user_symbols)
    symbols = len(set(settings.user_symbols))
    texts = list(texts)
    model = models.WordPiece(unk_token=_UNKNOWN)
    tokenizer = _pipeline(model, settings.lowercase)
    # The trainer numbers characters in the order of a randomly seeded hash map and breaks ties by number. Handing it
    # the characters as special tokens numbers them in a fixed order; nothing stays special about them.
    alphabet, pieces = _alphabet(tokenizer, texts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size - symbols,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*_SPECIAL, *pieces],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUED,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    supported = len(vocabulary) + symbols
    if supported != settings.vocab_size:
        bound = "at most" if supported < settings.vocab_size else "at least"
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected {bound} {supported} for this text; "
            f"set it to {supported}, or change the training text"
        )
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return WordPieceTokenizer(tokens, settings.lowercase, settings.user_symbols)


def _pipeline(model: models.WordPiece, lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _alphabet(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The most frequent characters, and the one-character pieces that they occur as, both in a fixed order."""
    pieces: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    for word, count in words.items():
        for index, character in enumerate(word):
            characters[character] += count
            pieces[_CONTINUED + character if index else character] += count
    kept = sorted(characters, key=lambda character: (-characters[character], character))[:_ALPHABET]
    known = set(kept)
    return kept, sorted(piece for piece in pieces if piece.removeprefix(_CONTINUED) in known)


def _check_symbols(symbols: Sequence[str]) -> None:
    for symbol in symbols:
        if not symbol or symbol in _SPECIAL or symbol != symbol.strip() or "\n" in symbol:
            raise UserError(
                f"tokenizer.user_symbols holds {symbol!r}: expected a string of one line, without blanks around it, "
                "that is not one of BERT's special tokens; choose another string"
            )


def parse_vocabulary(text: str, where: object) -> list[str]:
    """The tokens of a vocab.txt, one per line, with [UNK] and [SEP] among them. Raises UserError where they are not.

    Only line feeds end a line: BERT's vocabularies hold other Unicode line separators.
    """
    tokens = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    _check_vocabulary(tokens, where)
    return tokens


def _check_vocabulary(tokens: Sequence[str], where: object) -> None:
    if len(set(tokens)) < len(tokens):
        repeated = Counter(tokens).most_common(1)[0][0]
        raise UserError(f"{where}: expected each token once, {shortened(repeated)} is repeated; copy the file again")
    absent = [token for token in (_UNKNOWN, _SEPARATOR) if token not in set(tokens)]
    if absent:
        raise UserError(f"{where}: expected the lines [UNK] and [SEP], {absent} not found; use BERT's vocab.txt")
