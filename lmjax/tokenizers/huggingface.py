"""The one tokenizer class over a tokenizer.json: normalizer, pre-tokenizer, model and decoder of the library.

In: the files of a tokenizer as bytes, saved again unchanged; huggingface_config.py applies what transformers adds. Out:
the ids, offsets and texts that transformers gives for kind "huggingface", where the names of added tokens in a text are
these tokens. Kinds "bpe" and "wordpiece" (byte_level_bpe.py, wordpiece.py) are made by lmjax and add user symbols only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import tokenizers
from tokenizers import models

from lmjax.errors import UserError, shortened
from lmjax.files import check_form
from lmjax.tokenizers.base import Contents, StoredTokenizer
from lmjax.tokenizers.huggingface_config import (
    PIPELINE,
    FolderConfig,
    apply_config,
    clean_up,
    makes_its_own_steps,
    read_config,
)
from lmjax.tokenizers.pieces import Pieces, SpecialIds, located
from lmjax.tokenizers.pipeline import (
    UnknownPieces,
    bytes_by_id,
    bytes_of_tokens,
    is_library_error,
    keeps_text,
    open_pipeline,
    steps,
)

HUGGINGFACE, BPE, WORDPIECE = "huggingface", "bpe", "wordpiece"
Encode = Callable[..., list[tokenizers.Encoding]]
_IDS = ("eos_id", "bos_id", "pad_id", "unk_id")
_NAMED = {BPE: {"eos_id": "<|endoftext|>"}, WORDPIECE: {"eos_id": "[SEP]", "pad_id": "[PAD]"}}
_STEPS = {BPE: (models.BPE, ["ByteLevel"]), WORDPIECE: (models.WordPiece, ["BertNormalizer", "BertPreTokenizer"])}


class _Required(TypedDict):
    eos_id: int


class _Parameters(_Required, total=False):
    tokenizer_class: str | None
    rows: int | None
    bos_id: int | None
    pad_id: int | None
    unk_id: int | None
    user_symbols: list[str]


class HuggingFaceTokenizer(StoredTokenizer):
    """A tokenizer.json with what the files beside it add.

    Args:
      files: tokenizer.json and, where there are any, the files that transformers reads beside it, by name.
      parameters: of kind "huggingface" "tokenizer_class", whose flags hold, or null; "eos_id", and "bos_id", "pad_id",
        "unk_id" or null; "rows" of the model's table, or null: added tokens beyond them have no ids here. Of the other
        kinds "user_symbols", the strings that are always one token.
      where: names the tokenizer in errors.
      kind: "huggingface", "bpe" or "wordpiece".

    Raises UserError for files that are damaged or that lmjax cannot follow.
    """

    def __init__(
        self, files: Mapping[str, bytes], parameters: Mapping[str, Any], where: object, kind: str = HUGGINGFACE
    ) -> None:
        self.kind, self._files, self._where = kind, dict(files), where
        if PIPELINE not in self._files:
            raise UserError(f"{where}: no {PIPELINE}; expected the file of a Hugging Face tokenizer; restore it")
        self._tokenizer = open_pipeline(self._files[PIPELINE], where)
        config = read_config(self._files, where)
        named = {name: self._tokenizer.token_to_id(token) for name, token in _NAMED.get(kind, {}).items()}
        checked = check_form({"user_symbols": [], **parameters, **named}, _Parameters, where, "parameters")
        stored = ("user_symbols",) if named else ("tokenizer_class", "rows", *_IDS)
        self._parameters = {name: checked.get(name) for name in stored}
        apply_config(self._tokenizer, config, self._parameters.get("tokenizer_class"), where)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        entries = 1 + max(vocabulary.values())
        _check_kind(self._tokenizer, kind, len(vocabulary), entries, where)
        self._cleans_up = config.cleans_up and not isinstance(self._tokenizer.model, models.BPE)
        self._unknown = UnknownPieces(self._tokenizer)
        self._bytes = bytes_by_id(self._tokenizer, vocabulary) if kind == BPE else None
        rows = self._parameters.get("rows")
        self.vocab_size = entries if rows is None else min(entries, rows)
        self._has_rowless = self.vocab_size < entries
        self.eos_id, self.user_symbols = checked["eos_id"], checked["user_symbols"]
        self.bos_id, self.pad_id, self.unk_id = (checked.get(name) for name in _IDS[1:])
        for name in _IDS:
            index = getattr(self, name)
            if index is not None and not 0 <= index < self.vocab_size:
                raise UserError(f"{where}: {name} = {index}: expected an id below {self.vocab_size}; restore the file")
        self.special = self._special(config)
        self._cuts_words = self._tokenizer.pre_tokenizer is not None
        self.lossless = keeps_text(self._tokenizer, self._unknown.none_possible)

    @classmethod
    def made_here(
        cls, kind: str, pipeline: tokenizers.Tokenizer, user_symbols: Sequence[str], where: object
    ) -> HuggingFaceTokenizer:
        """The pipeline, to which the symbols are added, as a tokenizer of kind "bpe" or "wordpiece"."""
        pipeline.add_tokens([tokenizers.AddedToken(symbol, normalized=False) for symbol in user_symbols])
        files = {PIPELINE: pipeline.to_str().encode()}
        return cls(files, {"user_symbols": list(user_symbols)}, where, kind)

    def pipeline(self) -> dict[str, Any]:
        """The tokenizer.json as the library writes it; vocabularies are in the order of their ids."""
        return json.loads(self._tokenizer.to_str())

    @property
    def remarks(self) -> list[str]:
        """Warnings for the reader of the folder: tokens without a row, and a class that contradicts the file."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        beyond = sorted(token for token, index in vocabulary.items() if index >= self.vocab_size)
        lines = [f"the model has no rows for {shortened(beyond)}; a text that holds one is refused"] if beyond else []
        named = self._parameters.get("tokenizer_class")
        if makes_its_own_steps(self._tokenizer, named):
            lines.append(
                f"tokenizer_class = {shortened(named)}, for which transformers 5 sets the steps of {PIPELINE} aside; "
                "lmjax follows the file"
            )
        return lines

    def token(self, index: int) -> str:
        """The token of an id, as the vocabulary spells it."""
        return self._tokenizer.id_to_token(index) or ""

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._encodings(self._tokenizer.encode_batch_fast, list(texts), specials=False)
        if not self._has_rowless:
            return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return [self._ids(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def _special(self, config: FolderConfig) -> SpecialIds:
        """The ids of the special tokens that the files name, or that have BERT's names; none for kind "bpe"."""
        if self.kind == BPE:
            return SpecialIds()
        named = config.named(self._parameters.get("tokenizer_class")) if self.kind == HUGGINGFACE else {}
        ids = {}
        for name in SpecialIds._fields:
            token = named.get(f"{name}_token")
            index = self._tokenizer.token_to_id(token.content if token else f"[{name.upper()}]")
            index = self._parameters.get(f"{name}_id") if index is None else index
            ids[name] = index if index is not None and index < self.vocab_size else None
        return SpecialIds(**ids)

    def _pieces(self, texts: Sequence[str]) -> list[Pieces]:
        encodings = self._encodings(self._tokenizer.encode_batch, list(texts), specials=False)
        return [
            located(text, self._ids(text, each.ids), each.offsets, each.word_ids if self._cuts_words else None)
            for text, each in zip(texts, encodings, strict=True)
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode`, and the span of characters [begin, end) of the text that each id encodes."""
        encoding = self._encodings(self._tokenizer.encode_batch, [text], specials=False)[0]
        return self._ids(text, encoding.ids).tolist(), encoding.offsets

    def encode_with_specials(self, text: str) -> list[int]:
        """The ids with the special tokens that the post-processor adds, such as [CLS] and [SEP]."""
        encoding = self._encodings(self._tokenizer.encode_batch_fast, [text], specials=True)[0]
        return self._ids(text, encoding.ids).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        if self._bytes is not None:
            return b"".join([self._bytes[index] for index in self.text_ids(ids)]).decode("utf-8", errors="replace")
        text = self._tokenizer.decode(self.text_ids(ids), skip_special_tokens=False)
        return clean_up(text) if self._cleans_up else text

    def byte_lengths(self) -> np.ndarray | None:
        sizes = bytes_of_tokens(self._tokenizer) if self.lossless else None
        if self._bytes is not None:
            sizes = dict(enumerate(map(len, self._bytes)))
        if sizes is None:
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for index, size in sizes.items():
            lengths[index : index + 1] = size  # nothing for an id beyond the rows
        lengths[self.eos_id] = 0
        return lengths

    def contents(self) -> Contents:
        return Contents(self.kind, self._parameters, self._files)

    def __reduce__(self) -> Any:
        return HuggingFaceTokenizer, (self._files, self._parameters, str(self._where), self.kind)

    def _encodings(self, encode: Encode, texts: list[str], *, specials: bool) -> list[tokenizers.Encoding]:
        self._unknown.refuse(texts)
        try:
            return encode(texts, add_special_tokens=specials)
        except (TypeError, UnicodeEncodeError):
            raise
        except BaseException as error:
            if not is_library_error(error):
                raise
            if len(texts) > 1:  # the library does not name the text
                for text in texts:
                    self._encodings(encode, [text], specials=specials)
            raise UserError(
                f"the text {shortened(texts[0])} cannot be encoded by the tokenizer of {self._where} ({error}); "
                "change the text, or use a tokenizer with an unknown token"
            ) from error

    def _ids(self, text: str, ids: list[int]) -> np.ndarray:
        ids_T = np.asarray(ids, dtype=np.int32)
        if self._has_rowless and len(ids_T) and ids_T.max() >= self.vocab_size:
            token = self._tokenizer.id_to_token(int(ids_T.max()))
            raise UserError(
                f"the text {shortened(text)} holds {token!r}, token {ids_T.max()}: expected ids below "
                f"{self.vocab_size}, the rows of the model's table; remove the token from the text"
            )
        return ids_T


def _check_kind(tokenizer: tokenizers.Tokenizer, kind: str, size: int, entries: int, where: object) -> None:
    """Raises UserError for a file of kind "bpe" or "wordpiece" that lmjax cannot have written."""
    if kind not in _STEPS:
        return
    types = [step["type"] for step in (*steps(tokenizer.normalizer), *steps(tokenizer.pre_tokenizer))]
    model, expected = _STEPS[kind]
    if (type(tokenizer.model), types) != (model, expected):
        raise UserError(
            f"{where}: {PIPELINE} has the steps {shortened(types)} and a {type(tokenizer.model).__name__}: expected "
            f"{expected} and a {model.__name__}, as of a {kind!r} tokenizer; restore the file"
        )
    if entries != size:
        raise UserError(
            f"{where}: {PIPELINE} has {size} tokens and the id {entries - 1}: expected 0 to n-1; restore it"
        )


def as_json(value: Any) -> bytes:
    """The bytes of a JSON file in the form that lmjax writes for transformers."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
