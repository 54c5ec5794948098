"""The tokenizer of a Hugging Face folder, in the files that transformers and the published models use.

In: a folder; out: an lmjax tokenizer with the same ids, or the reason why there is none. The other way round: the files
from which transformers' AutoTokenizer gives the same ids, for the kinds of tokenizer that it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lmjax.data.tokenizer import Tokenizer, load_tokenizer
from lmjax.data.tokenizers import base
from lmjax.data.tokenizers.byte_level_bpe import END_OF_TEXT, BytePairTokenizer, byte_characters
from lmjax.errors import UserError

PIPELINE, CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_WORD_END = "</w>"  # ends a word in GPT-1's vocabulary
WANTED = (
    "vocab.json and merges.txt of a byte-level BPE, a tokenizer.json of one, a SentencePiece .model, or a WordPiece "
    "vocab.txt"
)


def read_tokenizer(folder: Path) -> tuple[Tokenizer | None, str]:
    """The folder's tokenizer and "", or None and why it cannot be used.

    Raises UserError where the files are damaged or contradict each other.
    """
    if (folder / base.METADATA).exists():
        return load_tokenizer(folder), ""
    if published := sorted(folder.glob("*.model")):
        found = load_tokenizer(published[0] if len(published) == 1 else folder)
        return _without_more(found, _added(folder), published[0])
    if (folder / PIPELINE).exists():
        return _from_pipeline(folder / PIPELINE)
    if (folder / _VOCABULARY).exists():
        return _from_vocabulary(folder)
    if (folder / "vocab.txt").exists():
        lowercase = bool(_object(folder / CONFIG).get("do_lower_case", True))
        found = load_tokenizer(folder / "vocab.txt", lowercase=lowercase)
        return _without_more(found, _added(folder), folder / "vocab.txt")
    return None, f"{folder} has no tokenizer"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> str:
    """Writes the files of a tokenizer for a model of `context` positions; returns what they are, in words.

    Byte-level BPE and WordPiece become files of transformers' own kinds, and bytes a BPE without merges. For
    SentencePiece, as lmjax trains it, transformers has no equal: only lmjax reads those files.
    """
    if tokenizer.kind == "byte":
        ids = dict(sorted(byte_characters().items(), key=lambda item: item[1]))
        vocabulary = json.dumps(ids | {END_OF_TEXT: tokenizer.eos_id}, ensure_ascii=False).encode()
        _write_pipeline(folder, {_VOCABULARY: vocabulary, _MERGES: b"#version: 0.2\n"}, [], context)
        return "bytes as a byte-level BPE without merges"
    contents = _contents(tokenizer)
    if tokenizer.kind == "bpe":
        _write_pipeline(folder, contents.files, contents.parameters["user_symbols"], context)
        return "a byte-level BPE"
    tokenizer.save(folder)
    if tokenizer.kind != "wordpiece":
        return f"{tokenizer.kind} in lmjax's own files, which transformers does not read"
    lowercase = contents.parameters["lowercase"]
    flags = {"do_lower_case": lowercase, "strip_accents": lowercase, "tokenize_chinese_chars": True}
    _write(folder / CONFIG, {"tokenizer_class": "BertTokenizer", "model_max_length": context, **flags})
    return "a WordPiece"


def _from_pipeline(path: Path) -> tuple[Tokenizer | None, str]:
    """Reads a tokenizer.json, whose steps have to be those of GPT-2."""
    pipeline = _object(path)
    if reason := _other_steps(pipeline):
        return None, f"{path}: {reason}, which lmjax has not"
    vocabulary, merges = pipeline["model"]["vocab"], pipeline["model"]["merges"]
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    added = {token["content"]: token["id"] for token in pipeline.get("added_tokens") or []}
    if END_OF_TEXT not in {*vocabulary, *added}:
        return None, f"{path}: no {END_OF_TEXT} in it, with which lmjax ends a text"
    merged = [(left, right) for left, right in pairs]
    return _same_ids(BytePairTokenizer(vocabulary, merged, _symbols(added), path), added, path), ""


def _from_vocabulary(folder: Path) -> tuple[Tokenizer | None, str]:
    """Reads GPT-2's pair of files, and what was added to them."""
    path, added = folder / _VOCABULARY, _added(folder)
    vocabulary = _object(path)
    if any(token.endswith(_WORD_END) for token in vocabulary):
        return None, f"{path}: words that end in {_WORD_END}, as in GPT-1's vocabulary, which lmjax has not"
    if _object(folder / CONFIG).get("add_prefix_space"):
        return None, f"{folder / CONFIG}: add_prefix_space = true, which lmjax has not"
    if END_OF_TEXT not in {*vocabulary, *added}:
        return None, f"{path}: no {END_OF_TEXT} in it, with which lmjax ends a text"
    return _same_ids(load_tokenizer(folder, user_symbols=_symbols(added)), added, path), ""


def _symbols(added: Mapping[str, int]) -> list[str]:
    return sorted((token for token in added if token != END_OF_TEXT), key=added.__getitem__)


def _same_ids(tokenizer: Tokenizer, added: Mapping[str, int], where: Path) -> Tokenizer:
    """Raises UserError unless the added tokens have the ids that their file gives them."""
    for token, index in added.items():
        own = [tokenizer.eos_id] if token == END_OF_TEXT else tokenizer.encode(token)
        if own != [index]:
            raise UserError(
                f"{where}: added token {token!r} has the id {index}: expected {own}, as the next after the "
                f"vocabulary's, {END_OF_TEXT} first; lmjax gives no other"
            )
    return tokenizer


def _other_steps(pipeline: Mapping[str, Any]) -> str:
    """What in a tokenizer.json differs from GPT-2's steps, or ""."""
    model, cut = pipeline.get("model") or {}, pipeline.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or not {"vocab", "merges"} <= model.keys():
        return f"a {model.get('type')!r} tokenizer"
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges", "dropout"):
        if model.get(name):
            return f"model.{name} = {model[name]!r}"
    if pipeline.get("normalizer"):
        return f"the normalizer {pipeline['normalizer'].get('type')!r}"
    if cut.get("type") != "ByteLevel" or cut.get("add_prefix_space") or not cut.get("use_regex", True):
        return f"the pre-tokenizer {json.dumps(cut)[:200]}"
    for token in pipeline.get("added_tokens") or []:
        if any(token.get(name) for name in ("single_word", "lstrip", "rstrip")):
            return f"the added token {token['content']!r} that takes in the blanks around it or is a whole word only"
    return ""


def _added(folder: Path) -> dict[str, int]:
    """Tokens that were added to the vocabulary, by the two files that older versions of transformers write."""
    decoder = _object(folder / CONFIG).get("added_tokens_decoder") or {}
    return {token["content"]: int(index) for index, token in decoder.items()} | _object(folder / ADDED)


def _without_more(found: Tokenizer, added: Mapping[str, int], where: Path) -> tuple[Tokenizer | None, str]:
    more = [token for token, index in added.items() if index >= found.vocab_size]
    return (None, f"{where}: the tokens {more} were added to it, which lmjax cannot do") if more else (found, "")


def _write_pipeline(folder: Path, files: Mapping[str, bytes], symbols: Sequence[str], context: int) -> None:
    """Writes GPT-2's own pair of files, and tokenizer.json, which alone holds the symbols."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    pipeline = tokenizers.Tokenizer(models.BPE.from_file(str(folder / _VOCABULARY), str(folder / _MERGES)))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)])
    pipeline.add_tokens([tokenizers.AddedToken(symbol, normalized=False) for symbol in symbols])
    (folder / PIPELINE).write_text(pipeline.to_str(pretty=True), encoding="utf-8")
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    _write(folder / CONFIG, {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context, **names})


def _contents(tokenizer: Tokenizer) -> base.Contents:
    assert isinstance(tokenizer, base.StoredTokenizer)
    return tokenizer.contents()


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file."""
    value = base.read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; copy it again")
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
