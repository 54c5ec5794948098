"""The parts of a tokenizer.json: opened and checked, and asked whether they keep every text.

In: the bytes of the file. Out: a `tokenizers.Tokenizer` without truncation or padding, whether texts can be told from
its ids, and a check that refuses the text which the library would drop a piece of without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import tokenizers
from tokenizers import models

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text
from lmjax.tokenizers.base import NoTokenizerError

_FIX = "restore the file"
_BLANK = "\u2581"  # what SentencePiece writes for a blank
_UNKNOWN_ID = 2**31  # of the probe's unknown token: no vocabulary is as long


_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# The byte of each character of a byte-level vocabulary: itself where it is printable Latin-1, else from U+0100 on.
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)}


def token_bytes(token: str) -> bytes:
    """What a token of a byte-level vocabulary stands for."""
    if not all(character in BYTES for character in token):
        return token.encode()
    return bytes([BYTES[character] for character in token])


class _AddedToken(TypedDict):
    id: int
    content: str


def open_pipeline(data: bytes, where: object) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json. Raises UserError where it is damaged, or draws its ids by chance."""
    text = decode_text(data, where)
    value = check_form(decode_json(text, where), dict[str, Any], where)
    check_form(value.get("model"), dict[str, Any], where, "model")
    added = value.get("added_tokens") or []
    check_form(added, list[_AddedToken], where, "added_tokens")
    tokenizer = library_call(lambda: tokenizers.Tokenizer.from_str(text), where)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        raise NoTokenizerError(
            f"{where}: model.dropout = {tokenizer.model.dropout:g}: expected none, as it gives a text other ids each "
            "time; set it to null"
        )
    ids = list(tokenizer.get_vocab(with_added_tokens=True).values())
    if not ids or len(set(ids)) < len(ids):
        what = "two tokens of the vocabulary have one id" if ids else "the vocabulary is empty"
        raise UserError(f"{where}: {what}; expected tokens with an id each; {_FIX}")
    for token in added:
        own = tokenizer.token_to_id(token["content"])
        if own != token["id"]:
            raise UserError(
                f"{where}: added token {shortened(token['content'])} has the id {token['id']}: expected {own}, as the "
                "library numbers it; use the tokenizer's own file"
            )
    return tokenizer


def library_call(call: Any, where: object) -> Any:
    """What `call` gives. Raises UserError for all that the tokenizers library raises, its panics included."""
    try:
        return call()
    except BaseException as error:
        if not is_library_error(error):
            raise
        reason = str(error).split("\n")[0][:300]
        raise UserError(f"{where}: expected a tokenizer.json of Hugging Face ({reason}); {_FIX}") from error


def is_library_error(error: BaseException) -> bool:
    """Whether the tokenizers library can have raised it, which raises nothing narrower; its panics are no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def state(part: Any) -> dict[str, Any]:
    """A normalizer, pre-tokenizer or decoder as in the file; an empty object where there is none."""
    return json.loads(part.__getstate__()) if part is not None else {}


def steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences taken apart."""
    pending = [state(part)]
    while pending:
        step = pending.pop(0)
        inner = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
        if step.get("type") == "Sequence" and isinstance(inner, list):
            pending = inner + pending
        elif step:
            yield step


class UnknownPieces:
    """Finds what a tokenizer has no token for, where its model would drop it: a BPE without an unknown token does.

    `none_possible`: every text is covered by the vocabulary's bytes, with or without an unknown token.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        byte_level = any(step.get("type") == "ByteLevel" for step in steps(tokenizer.pre_tokenizer))
        falls_back = getattr(tokenizer.model, "byte_fallback", False)
        missing = {byte for character, byte in BYTES.items() if character not in vocabulary}
        if not byte_level:
            missing = {byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary or not falls_back}
        self.none_possible = not missing and isinstance(tokenizer.model, models.BPE | models.Unigram)
        self._missing = missing if byte_level and tokenizer.normalizer is None else set(range(256))
        drops = isinstance(tokenizer.model, models.BPE) and tokenizer.model.unk_token is None
        self._probe = _probe(tokenizer) if drops and missing else None

    def refuse(self, texts: Sequence[str]) -> None:
        """Raises UserError at the first character for which there is no token."""
        if self._probe is None:
            return
        for text in texts:
            if self._missing.isdisjoint(text.encode("utf-8")):
                continue
            encoding = self._probe.encode(text, add_special_tokens=False)
            if _UNKNOWN_ID in encoding.ids:
                begin, end = encoding.offsets[encoding.ids.index(_UNKNOWN_ID)]
                piece = text[begin:end] or text
                raise UserError(
                    f"the text {shortened(text)} holds {shortened(piece)} at character {begin}, for which the "
                    "tokenizer has no token; take it out of the text, or use a tokenizer that has all bytes"
                )


def _probe(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with an id for what it would drop."""
    value = json.loads(tokenizer.to_str())
    value["model"]["vocab"]["<lmjax unknown>"] = _UNKNOWN_ID
    value["model"] |= {"unk_token": "<lmjax unknown>", "fuse_unk": False}
    value["added_tokens"] = [token | {"id": 0} for token in value["added_tokens"]]
    return tokenizers.Tokenizer.from_str(json.dumps(value))


def bytes_by_id(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """What each id of a byte-level tokenizer, 0 to n-1, stands for.

    Added tokens are text: the library's own decoder reads their characters as bytes where it can.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return [
        token.encode() if token in added else token_bytes(token)
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
    ]


def keeps_text(tokenizer: tokenizers.Tokenizer, covered: bool) -> bool:
    """Whether every text that is encoded can be told from its ids, but for U+2581 where that stands for a blank."""
    flags = tokenizer.get_added_tokens_decoder().values()
    if not covered and _may_replace(tokenizer):
        return False
    if any(token.lstrip or token.rstrip for token in flags):
        return False
    return all(map(_normalizer_keeps, steps(tokenizer.normalizer))) and all(
        map(_cut_keeps, steps(tokenizer.pre_tokenizer))
    )


def bytes_of_tokens(tokenizer: tokenizers.Tokenizer) -> dict[int, int] | None:
    """By id, how many bytes of text each token stands for, of a tokenizer that keeps texts; None where one adds blanks.

    Characters of byte-level tokens are bytes; pieces of the others are text, but for single bytes such as <0x0A>.
    """
    around = {step["type"] for step in (*steps(tokenizer.normalizer), *steps(tokenizer.pre_tokenizer))}
    model = tokenizer.model
    marked = getattr(model, "end_of_word_suffix", None) or getattr(model, "continuing_subword_prefix", None)
    if "Prepend" in around or marked:
        return None
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

    def size(token: str) -> int:
        if token in added:
            return len(token.encode())
        if "ByteLevel" in around:
            return len(token)
        if getattr(model, "byte_fallback", False) and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return 1
        return len((token.replace(_BLANK, " ") if around & {"Metaspace", "Replace"} else token).encode())

    return {index: size(token) for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}


def _may_replace(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the model writes an unknown token for what it does not know. One without refuses the text."""
    return not isinstance(tokenizer.model, models.BPE) or tokenizer.model.unk_token is not None


def _normalizer_keeps(step: dict[str, Any]) -> bool:
    blanks = step.get("pattern") == {"String": " "} and step.get("content") == _BLANK
    return step["type"] == "Prepend" or (step["type"] == "Replace" and blanks) or step["type"] == "ByteLevel"


def _cut_keeps(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step.get("add_prefix_space")
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme") == "never"
    return step["type"] in ("Split", "Digits", "Punctuation", "UnicodeScripts") and step.get("behavior") != "Removed"
