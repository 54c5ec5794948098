"""What transformers adds to a tokenizer.json: special and added tokens, and the flags of some tokenizer classes.

In: tokenizer_config.json, special_tokens_map.json and added_tokens.json as bytes. Out: a `FolderConfig`, which
`apply_config` applies to a tokenizer in place. A flag that contradicts the file, and that lmjax does not apply, is an
error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text
from lmjax.tokenizers.base import NoTokenizerError
from lmjax.tokenizers.pipeline import state, steps

PIPELINE, CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SPECIAL, TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
FILES = (PIPELINE, CONFIG, SPECIAL, ADDED, TEMPLATE)  # kept as they are in checkpoints and exports
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
AS_IN_FILE = ("TokenizersBackend", "PreTrainedTokenizer")  # classes that add no flags to the file

_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "ConvBertTokenizer", "MobileBertTokenizer")
_BERT_FLAGS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
_BERT_FLAGS |= {"tokenize_chinese_chars": "handle_chinese_chars"}
_BERT_DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_BERT_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_GPT2_TOKENS = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_DEFAULT_TOKENS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": _GPT2_TOKENS,
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
}
_DEFAULT_TOKENS.update((name, _BERT_TOKENS) for name in _BERT)
_MODEL_CLASSES = {"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "distilbert": "BertTokenizer"}
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_FIX = "restore the file"


@dataclass(frozen=True)
class FolderConfig:
    """The files beside a tokenizer.json, checked.

    `values` are the fields of tokenizer_config.json with those of special_tokens_map.json where they count; `added` are
    the tokens by id that other files than tokenizer.json add.
    """

    values: Mapping[str, Any]
    added: Mapping[int, tokenizers.AddedToken]
    where: object

    def flag(self, name: str) -> bool | None:
        """True or False, or None where the file does not say."""
        return check_form(self.values.get(name), bool | None, self.where, name, _FIX)

    def text(self, name: str) -> str | None:
        return check_form(self.values.get(name), str | None, self.where, name, _FIX)

    @property
    def tokenizer_class(self) -> str | None:
        name = self.text("tokenizer_class")
        return name.removesuffix("Fast") if name else None

    def named(self, tokenizer_class: str | None) -> dict[str, tokenizers.AddedToken]:
        """The special tokens by their names, such as "eos_token"."""
        values = _DEFAULT_TOKENS.get(tokenizer_class or "", {}) | {
            name: self.values[name] for name in NAMED if name in self.values
        }
        known = {token.content: token for token in self.added.values()}
        tokens = {}
        for name, value in values.items():
            if value is not None:
                token = _token(value, f"{self.where}: {name}")
                tokens[name] = known.get(token.content, token)
        return tokens

    def extra(self) -> list[tokenizers.AddedToken]:
        """Special tokens beyond the named ones."""
        value = self.values.get("extra_special_tokens") or self.values.get("additional_special_tokens") or []
        several = list(value.values()) if isinstance(value, dict) else value
        check_form(several, list[Any], self.where, "extra_special_tokens", _FIX)
        other_fields = [
            text
            for name, text in self.values.items()
            if name.endswith("_token") and name not in NAMED and isinstance(text, str)
        ]
        return [_token(item, f"{self.where}: extra_special_tokens") for item in [*other_fields, *several]]

    @property
    def cleans_up(self) -> bool:
        return bool(self.flag("clean_up_tokenization_spaces"))


def clean_up(text: str) -> str:
    """The text without the blanks that decoding leaves before punctuation."""
    for mark in (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(" ' " if mark == "'" else f" {mark}", mark)
    return text


def read_config(files: Mapping[str, bytes], where: object) -> FolderConfig:
    """The files beside tokenizer.json. Raises UserError naming file and field."""
    values = _object(files, CONFIG, where)
    place = f"{where}: {CONFIG}"
    by_id = values.get("added_tokens_decoder")
    added: dict[int, tokenizers.AddedToken] = {}
    if by_id is not None:
        check_form(by_id, dict[str, dict[str, Any]], place, "added_tokens_decoder", _FIX)
        for index, token in by_id.items():
            added[_index(index, place)] = _token(token, f"{place}: added_tokens_decoder.{index}")
        return FolderConfig(values, added, place)
    values = values | _object(files, SPECIAL, where)
    named = FolderConfig(values, {}, place)
    specials = {token.content for token in [*named.named(named.tokenizer_class).values(), *named.extra()]}
    numbers = check_form(_object(files, ADDED, where), dict[str, int], f"{where}: {ADDED}", "", _FIX)
    for content, number in numbers.items():
        special = content in specials
        added[number] = tokenizers.AddedToken(content, normalized=not special, special=special)
    return FolderConfig(values, added, place)


def apply_config(
    tokenizer: tokenizers.Tokenizer, config: FolderConfig, tokenizer_class: str | None, where: object
) -> None:
    """Adds the tokens and sets the flags as transformers does. Raises UserError for flags that lmjax cannot follow."""
    _set_flags(tokenizer, config, tokenizer_class)
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokens = [config.added[index] for index in sorted(config.added)]
    if "added_tokens_decoder" not in config.values:  # else its flags count, not those in tokenizer.json
        tokens = [token for token in tokens if token.content not in present]
    specials = [*config.named(tokenizer_class).values(), *config.extra()]
    tokenizer.add_tokens([*tokens, *(token for token in specials if token.content not in present)])
    for index, token in config.added.items():
        actual = tokenizer.token_to_id(token.content)
        if token.content and actual != index:
            raise UserError(
                f"{where}: added token {shortened(token.content)} has the id {index}: expected {actual}, as the next "
                "after the vocabulary's; use the tokenizer's own files"
            )
    if config.flag("split_special_tokens"):
        tokenizer.encode_special_tokens = True


def makes_its_own_steps(tokenizer: tokenizers.Tokenizer, tokenizer_class: str | None) -> bool:
    """Whether transformers 5 replaces the normalizer and pre-tokenizer of the file by those of the tokenizer class."""
    normal, cut = state(tokenizer.normalizer), state(tokenizer.pre_tokenizer).get("type")
    if tokenizer_class == "GPT2Tokenizer":
        return bool(normal) or cut != "ByteLevel"
    if tokenizer_class == "LlamaTokenizer":
        kinds = {step["type"] for step in steps(tokenizer.pre_tokenizer)}
        return "ByteLevel" not in kinds and (bool(normal) or cut != "Metaspace")
    return tokenizer_class in _BERT and (normal.get("type"), cut) != ("BertNormalizer", "BertPreTokenizer")


def class_of_model(model_type: object) -> str | None:
    """The tokenizer class that transformers uses where tokenizer_config.json names none."""
    return _MODEL_CLASSES.get(model_type) if isinstance(model_type, str) else None


def _set_flags(tokenizer: tokenizers.Tokenizer, config: FolderConfig, tokenizer_class: str | None) -> None:
    if tokenizer_class is not None and tokenizer_class.startswith(AS_IN_FILE):
        return
    flags = {name: config.flag(name) for name in _BERT_FLAGS if config.values.get(name) is not None}
    rules = state(tokenizer.normalizer)
    if tokenizer_class in _BERT and rules.get("type") == "BertNormalizer":
        wanted: dict[str, Any] = {_BERT_FLAGS[name]: value for name, value in (_BERT_DEFAULTS | flags).items()}
        tokenizer.normalizer = normalizers.BertNormalizer(clean_text=rules["clean_text"], **wanted)
    elif tokenizer_class in (*_BERT, None):
        for name, value in flags.items():
            if rules.get(_BERT_FLAGS[name], False if value is False else None) != value:
                raise _unfollowed(config, name, f"the normalizer of {PIPELINE}, {shortened(rules)}")
    prefix, cut = config.flag("add_prefix_space"), state(tokenizer.pre_tokenizer)
    if tokenizer_class == "GPT2Tokenizer" and cut.get("type") == "ByteLevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=bool(prefix), use_regex=cut["use_regex"], trim_offsets=cut["trim_offsets"]
        )
    elif prefix is not None and prefix != _puts_blank(tokenizer) and _cuts_words(tokenizer):
        raise _unfollowed(config, "add_prefix_space", f"the steps of {PIPELINE}, which do otherwise")


def _puts_blank(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the steps put a blank before a text."""
    before = any(step["type"] == "Prepend" for step in steps(tokenizer.normalizer))
    return before or any(
        step.get("add_prefix_space") or step.get("prepend_scheme", "never") != "never"
        for step in steps(tokenizer.pre_tokenizer)
    )


def _cuts_words(tokenizer: tokenizers.Tokenizer) -> bool:
    kinds = {step["type"] for step in [*steps(tokenizer.normalizer), *steps(tokenizer.pre_tokenizer)]}
    return bool(kinds & {"ByteLevel", "Metaspace", "Prepend"})


def _unfollowed(config: FolderConfig, name: str, what: str) -> UserError:
    return NoTokenizerError(
        f"{config.where}: {name} = {config.values[name]!r}: expected what {what}; remove the field where the file is "
        "right, or save the tokenizer again with transformers"
    )


def _token(value: Any, where: str) -> tokenizers.AddedToken:
    """A token that is written as its text, or as an object of its text and flags."""
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=True, normalized=False)
    check_form(value, dict[str, Any], where, "", _FIX)
    content = check_form(value.get("content"), str, where, "content", _FIX)
    flags = {name: check_form(value[name], bool, where, name, _FIX) for name in _FLAGS if name in value}
    return tokenizers.AddedToken(content, **({"special": True} if "__type" in value else {}) | flags)


def _index(text: str, where: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{where}: added_tokens_decoder names {shortened(text)}: expected a token's id; {_FIX}")
    return int(text)


def _object(files: Mapping[str, bytes], name: str, where: object) -> dict[str, Any]:
    if name not in files:
        return {}
    place = f"{where}: {name}"
    value = decode_json(decode_text(files[name], place), place, dict[str, Any], _FIX)
    if any("\ud800" <= character <= "\udfff" for character in json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{place}: a lone surrogate, as \\ud800 is; expected Unicode text; {_FIX}")
    return value
