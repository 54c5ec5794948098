"""Opens and checks a tokenizer.json, and determines whether it is lossless.

In: the bytes of the file. Out: a `tokenizers.Tokenizer` without truncation or padding, whether different texts have
different ids, and a check that refuses a text of which the library would silently drop a piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import tokenizers
from tokenizers import models

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text
from lmjax.tokenizers.base import NoTokenizerError, NoTokensError

_FIX = "restore the file"
_BLANK = "\u2581"  # what SentencePiece writes for a blank
_UNKNOWN_ID = 2**31  # of the probe's unknown token: no vocabulary is as long
_AROUND = 80  # characters that are shown on each side of one without a token


_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# The byte of each character of a byte-level vocabulary: itself where it is printable Latin-1, else from U+0100 on.
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)}


def token_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary."""
    try:
        return bytes([BYTES[character] for character in token])
    except KeyError:  # a token of other characters, which no merge makes
        return token.encode()


class _AddedToken(TypedDict):
    id: int
    content: str


def open_pipeline(data: bytes, where: object) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json. Raises UserError where it is damaged, or its ids are random (dropout)."""
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
            f"{where}: model.dropout = {tokenizer.model.dropout:g}: expected none, as ids would be random; set it to "
            "null"
        )
    ids = list(tokenizer.get_vocab(with_added_tokens=True).values())
    if not ids or len(set(ids)) < len(ids):
        what = "two tokens of the vocabulary have one id" if ids else "the vocabulary is empty"
        raise UserError(f"{where}: {what}; expected tokens with an id each; {_FIX}")
    for token in added:
        actual = tokenizer.token_to_id(token["content"])
        if actual != token["id"]:
            raise UserError(
                f"{where}: added token {shortened(token['content'])} has the id {token['id']}: expected {actual}, "
                "the id that the library assigns; use the tokenizer's own file"
            )
    return tokenizer


def library_call(call: Any, where: object) -> Any:
    """The result of `call`. Raises UserError for every error of the tokenizers library, panics included."""
    try:
        return call()
    except BaseException as error:
        if not is_library_error(error):
            raise
        reason = str(error).split("\n")[0][:300]
        raise UserError(f"{where}: expected a tokenizer.json of Hugging Face ({reason}); {_FIX}") from error


def is_library_error(error: BaseException) -> bool:
    """Whether the tokenizers library may have raised it: a plain Exception, or a panic, which is a BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def state(part: Any) -> dict[str, Any]:
    """A normalizer, pre-tokenizer or decoder as JSON; an empty object where there is none."""
    return json.loads(part.__getstate__()) if part is not None else {}


def steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with sequences flattened."""
    pending = [state(part)]
    while pending:
        step = pending.pop(0)
        inner = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
        if step.get("type") == "Sequence" and isinstance(inner, list):
            pending = inner + pending
        elif step:
            yield step


class UnknownPieces:
    """Finds text without a token that the model would silently drop, as a BPE without an unknown token does.

    none_possible: the vocabulary has all bytes, so that every text has tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        model = tokenizer.model
        byte_level = any(step.get("type") == "ByteLevel" for step in steps(tokenizer.pre_tokenizer))
        falls_back = getattr(model, "byte_fallback", False)
        missing = missing_bytes(model.token_to_id)
        if not byte_level:
            missing = {byte for byte in range(256) if model.token_to_id(f"<0x{byte:02X}>") is None or not falls_back}
        self.none_possible = not missing and isinstance(model, models.BPE | models.Unigram)
        self._missing = missing if byte_level or falls_back else set()
        self._suspect = missing if byte_level and tokenizer.normalizer is None else set(range(256))
        drops = isinstance(model, models.BPE) and model.unk_token is None
        self._probe = _probe(tokenizer) if drops and missing else None

    def refuse(self, texts: Sequence[str]) -> None:
        """Raises NoTokensError at the first character for which there is no token, and names its bytes."""
        if self._probe is None:
            return
        for text in texts:
            if self._suspect.isdisjoint(text.encode("utf-8")):
                continue
            encoding = self._probe.encode(text, add_special_tokens=False)
            if _UNKNOWN_ID in encoding.ids:
                begin, end = encoding.offsets[encoding.ids.index(_UNKNOWN_ID)]
                piece, near = text[begin:end] or text, text[max(0, begin - _AROUND) : begin + _AROUND]
                raise NoTokensError(
                    f"the text {shortened(near)} holds {shortened(piece)}{self._named(piece)} at character {begin}, "
                    "for which the tokenizer has no token; remove it from the text, or use a tokenizer that has all "
                    "bytes"
                )

    def _named(self, piece: str) -> str:
        """The bytes of a piece that have no token, in words; nothing where the model does not read bytes."""
        names = [f"0x{byte:02X}" for byte in dict.fromkeys(piece.encode("utf-8")) if byte in self._missing]
        return f" (byte {', '.join(names)})" if names else ""


def missing_bytes(id_of: Callable[[str], int | None]) -> set[int]:
    """The bytes of which the vocabulary of a byte-level tokenizer has no token."""
    return {byte for character, byte in BYTES.items() if id_of(character) is None}


def _probe(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with an unknown token for what it would drop."""
    value = json.loads(tokenizer.to_str())
    value["model"]["vocab"]["<lmjax unknown>"] = _UNKNOWN_ID
    value["model"] |= {"unk_token": "<lmjax unknown>", "fuse_unk": False}
    value["added_tokens"] = [token | {"id": 0} for token in value["added_tokens"]]
    return tokenizers.Tokenizer.from_str(json.dumps(value))


def bytes_by_id(tokenizer: tokenizers.Tokenizer, vocabulary: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id, 0 to n-1, of a byte-level tokenizer.

    Added tokens are text: the library's own decoder reads their characters as bytes where it can.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return [
        token.encode() if token in added else token_bytes(token)
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
    ]


def keeps_text(tokenizer: tokenizers.Tokenizer, covered: bool) -> bool:
    """Whether different texts have different ids, except that U+2581 may equal a blank."""
    flags = tokenizer.get_added_tokens_decoder().values()
    if not covered and _may_replace(tokenizer):
        return False
    if any(token.lstrip or token.rstrip for token in flags):
        return False
    return all(map(_normalizer_keeps, steps(tokenizer.normalizer))) and all(
        map(_cut_keeps, steps(tokenizer.pre_tokenizer))
    )


def bytes_of_tokens(tokenizer: tokenizers.Tokenizer) -> dict[int, int] | None:
    """Bytes of text per id, of a lossless tokenizer; None where the tokenizer adds blanks.

    Characters of byte-level tokens are bytes; other tokens are text, except single bytes such as <0x0A>.
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
    """Whether the model encodes unknown text as an unknown token."""
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
