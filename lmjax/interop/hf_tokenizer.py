"""The tokenizer of a Hugging Face folder, in the files that transformers and the published models use.

In: a folder; out: an lmjax tokenizer with the same ids, or the reason why there is none. The other way round: the files
from which transformers' AutoTokenizer gives the same ids, and the ids at which its `generate` begins, ends and pads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from lmjax.files import read_json
from lmjax.tokenizers import base
from lmjax.tokenizers.byte_level_bpe import END_OF_TEXT, byte_level_pipeline, parse_merges
from lmjax.tokenizers.huggingface import HUGGINGFACE, HuggingFaceTokenizer, as_json
from lmjax.tokenizers.huggingface_config import CONFIG, PIPELINE
from lmjax.tokenizers.pipeline import BYTES
from lmjax.tokenizers.tokenizer import Tokenizer, load_tokenizer, published_contents
from lmjax.tokenizers.wordpiece import between_specials, wordpiece_pipeline

MODEL, GENERATION = "config.json", "generation_config.json"
_VOCABULARY, _MERGES, _WORDPIECE = "vocab.json", "merges.txt", "vocab.txt"
_BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
WANTED = (
    "tokenizer.json, with tokenizer_config.json for the token that ends a text, or vocab.json and merges.txt of a "
    "byte-level BPE, a SentencePiece .model, or a WordPiece vocab.txt"
)


def read_tokenizer(folder: Path, rows: int | None = None) -> tuple[Tokenizer | None, str]:
    """The folder's tokenizer and "", or None and why there is none.

    Added tokens beyond the model's `rows` have no ids. Raises UserError where the files are damaged or contradict each
    other, or where lmjax cannot follow them.
    """
    try:
        return load_tokenizer(folder, rows=rows), ""
    except base.NoTokenizerError as error:
        return None, str(error)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> str:
    """Writes the files of a tokenizer for a model of `context` positions; returns what they are, in words.

    A Hugging Face tokenizer's own files are written as they were read. Byte-level BPE and WordPiece become files of
    transformers' own kinds, and bytes a BPE without merges. For SentencePiece, as lmjax trains it, transformers has no
    equal: only lmjax reads those files. The ids that begin, end and pad a text are written for `generate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_ids(folder, tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.kind == HUGGINGFACE:
        return _write_as_read(folder, tokenizer, context)
    if tokenizer.kind == "byte":
        ids = dict(sorted(BYTES.items(), key=lambda item: item[1]))
        vocabulary = json.dumps(ids | {END_OF_TEXT: tokenizer.eos_id}, ensure_ascii=False).encode()
        contents = base.Contents("byte", {}, {_VOCABULARY: vocabulary, _MERGES: b"#version: 0.2\n"})
        _write_byte_level(folder, contents, (), context)
        return "bytes as a byte-level BPE without merges"
    contents = published_contents(tokenizer)
    if tokenizer.kind == "bpe":
        _write_byte_level(folder, contents, contents.parameters["user_symbols"], context)
        return "a byte-level BPE"
    if tokenizer.kind == "wordpiece":
        _write_wordpiece(folder, contents, context)
        return "a WordPiece"
    base.write_folder(folder, contents)
    return f"{tokenizer.kind} in lmjax's own files, which transformers does not read"


def _write_as_read(folder: Path, tokenizer: HuggingFaceTokenizer, context: int) -> str:
    contents = tokenizer.contents()
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)
    if CONFIG not in contents.files:
        name = contents.parameters["tokenizer_class"] or "PreTrainedTokenizerFast"
        ends = {"eos_token": tokenizer.token(tokenizer.eos_id)}
        _write(folder / CONFIG, {"tokenizer_class": name, "model_max_length": context, **ends})
    return "the tokenizer.json that was read"


def _write_byte_level(folder: Path, contents: base.Contents, symbols: Sequence[str], context: int) -> None:
    """Writes GPT-2's own pair of files, and tokenizer.json, which alone holds the symbols."""
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)
    vocabulary, merges = json.loads(contents.files[_VOCABULARY]), contents.files[_MERGES].decode()
    pipeline = byte_level_pipeline(vocabulary, parse_merges(merges, folder), folder)
    pipeline.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)])
    _write_pipeline(folder, contents, pipeline, symbols)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    _write(folder / CONFIG, {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context, **names})


def _write_wordpiece(folder: Path, contents: base.Contents, context: int) -> None:
    """Writes BERT's vocab.txt and flags, and tokenizer.json, which alone holds the symbols."""
    tokens = contents.files[_WORDPIECE].decode().removesuffix("\n").split("\n")
    lowercase = contents.parameters["lowercase"]
    pipeline = between_specials(wordpiece_pipeline(tokens, lowercase=lowercase, strip_accents=lowercase))
    names = {name: token for name, token in _BERT.items() if token in tokens}
    pipeline.add_special_tokens(list(names.values()))
    _write_pipeline(folder, contents, pipeline, contents.parameters["user_symbols"])
    own_class = "BertTokenizer" if len(names) == len(_BERT) else "PreTrainedTokenizerFast"
    flags = {"do_lower_case": lowercase, "strip_accents": lowercase, "tokenize_chinese_chars": True}
    names["eos_token"] = _BERT["sep_token"]
    _write(folder / CONFIG, {"tokenizer_class": own_class, "model_max_length": context, **flags, **names})


def _write_pipeline(
    folder: Path, contents: base.Contents, pipeline: tokenizers.Tokenizer, symbols: Sequence[str]
) -> None:
    """Writes tokenizer.json with the symbols, and beside it lmjax's own description of the same tokenizer.

    A symbol like <|im_end|> marks turns and is no text: it is special, as such tokens are in published tokenizers.
    """
    for symbol in symbols:
        special = symbol.startswith("<|") and symbol.endswith("|>")
        pipeline.add_tokens([tokenizers.AddedToken(symbol, normalized=False, special=special)])
    written = {PIPELINE: pipeline.to_str(pretty=True).encode("utf-8")}
    base.write_folder(folder, base.Contents(contents.kind, contents.parameters, {**contents.files, **written}))


def _write_ids(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes where a text begins, ends and is padded into generation_config.json and, where it is, config.json.

    lmjax puts no token before a prompt, and begins an empty one with the end of a text.
    """
    bos_id, pad_id = getattr(tokenizer, "bos_id", None), getattr(tokenizer, "pad_id", None)
    ids = {"bos_token_id": tokenizer.eos_id if bos_id is None else bos_id}
    ids |= {"eos_token_id": tokenizer.eos_id, "pad_token_id": pad_id}
    _write(folder / GENERATION, ids)
    if (folder / MODEL).is_file():
        text = json.dumps(read_json(folder / MODEL, dict[str, Any]) | ids, indent=2)
        (folder / MODEL).write_text(text + "\n", encoding="utf-8")


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(as_json(value))
