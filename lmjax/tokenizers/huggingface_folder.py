"""The tokenizer of a Hugging Face folder: its tokenizer.json, or one converted from older files as transformers does.

In: a folder and, for the tokenizer of a model, the rows of its table. Out: a `HuggingFaceTokenizer`. The files of the
folder name the token that ends a text; where they do not, the folder is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from lmjax.errors import UserError
from lmjax.files import check_form, read_bytes, read_json
from lmjax.tokenizers.base import NoTokenizerError
from lmjax.tokenizers.huggingface import HuggingFaceTokenizer, as_json
from lmjax.tokenizers.huggingface_config import (
    CONFIG,
    FILES,
    PIPELINE,
    TEMPLATE,
    FolderConfig,
    apply_config,
    class_of_model,
    read_config,
)
from lmjax.tokenizers.older_files import byte_level, sentencepiece, wordpiece
from lmjax.tokenizers.pipeline import open_pipeline

_MODEL, _GENERATION = "config.json", "generation_config.json"
_MARKS = (
    *(name for name in FILES if name != TEMPLATE),
    _MODEL,
)  # a folder with one of these files is a Hugging Face folder
_ENDS = ("<|endoftext|>", "[SEP]")  # the names in GPT-2 and BERT


def is_huggingface(folder: Path) -> bool:
    """Whether the folder has a file that only transformers writes."""
    return folder.is_dir() and any((folder / name).is_file() for name in _MARKS)


def read_huggingface(folder: Path, rows: int | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of the folder. Added tokens beyond `rows` have no ids.

    Raises UserError where the files are damaged or contradict each other, NoTokenizerError where there are none.
    """
    files = {name: read_bytes(folder / name) for name in FILES if (folder / name).is_file()}
    model = _object(folder / _MODEL)
    config = read_config(files, folder)
    named_class = config.tokenizer_class or _class_in(model, folder / _MODEL) or class_of_model(model.get("model_type"))
    if PIPELINE in files:
        where = folder / PIPELINE
        pipeline = open_pipeline(files[PIPELINE], where)
    else:
        where = folder
        pipeline, names = _from_older_files(folder, config, named_class)
        files[PIPELINE] = pipeline.to_str(pretty=True).encode("utf-8")
        if names.keys() - config.values.keys():
            config = dataclasses.replace(config, values=names | dict(config.values))
            files[CONFIG] = as_json(config.values)
    apply_config(pipeline, config, named_class, where)
    rows = _rows(pipeline, rows)
    ids = _ids(folder, pipeline, config, named_class, model)
    in_table = {name: None if index is None or (rows and index >= rows) else index for name, index in ids.items()}
    if in_table["eos_id"] is None:
        raise NoTokenizerError(
            f"{folder / CONFIG}: eos_token has the id {ids['eos_id']}: expected one of the {rows} rows of the model's "
            "table; name another token"
        )
    return HuggingFaceTokenizer(files, {**in_table, "tokenizer_class": named_class, "rows": rows}, where)


def _from_older_files(
    folder: Path, config: FolderConfig, named_class: str | None
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The pipeline that transformers makes without a tokenizer.json, and the special tokens that the files name."""
    model_files = sorted(folder.glob("*.model"))
    if len(model_files) > 1:
        raise UserError(
            f"{folder}: expected one .model file, found {[path.name for path in model_files]}; name one of them"
        )
    if model_files:
        return sentencepiece(model_files[0], config, named_class)
    if (folder / "vocab.json").is_file():
        return byte_level(folder, config, named_class), {}
    if (folder / "vocab.txt").is_file():
        return wordpiece(folder / "vocab.txt", config, named_class), {}
    raise NoTokenizerError(f"{folder} has no tokenizer")


def _ids(
    folder: Path,
    pipeline: tokenizers.Tokenizer,
    config: FolderConfig,
    named_class: str | None,
    model: Mapping[str, Any],
) -> dict[str, int | None]:
    """The ids of the special tokens: by name in the tokenizer's files, then by number in the model's."""
    named = {name: pipeline.token_to_id(token.content) for name, token in config.named(named_class).items()}
    generation = _object(folder / _GENERATION)
    ids: dict[str, int | None] = {}
    for short in ("eos", "bos", "pad", "unk"):
        name = f"{short}_token"
        numbers = [_first_id(values.get(f"{name}_id"), pipeline) for values in (generation, model)]
        candidates = [index for index in (named.get(name), *numbers) if index is not None]
        ids[f"{short}_id"] = candidates[0] if candidates and config.values.get(name, "") is not None else None
    others = [named.get("sep_token"), *map(pipeline.token_to_id, _ENDS)]
    if ids["eos_id"] is None:
        ids["eos_id"] = next((index for index in others if index is not None), None)
    if ids["eos_id"] is None:
        raise NoTokenizerError(
            f"{folder / CONFIG}: no eos_token, which ends a text; expected the name of a token of the vocabulary; "
            'add "eos_token" to the file'
        )
    return ids


def _first_id(value: Any, pipeline: tokenizers.Tokenizer) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < 2**31 and pipeline.id_to_token(value) is not None else None


def _rows(pipeline: tokenizers.Tokenizer, rows: int | None) -> int | None:
    """`rows` where only added tokens have ids beyond them, else None."""
    ids = pipeline.get_vocab(with_added_tokens=False).values()
    return rows if rows is not None and max(ids, default=-1) < rows else None


def _class_in(model: Mapping[str, Any], where: Path) -> str | None:
    name = check_form(model.get("tokenizer_class"), str | None, where, "tokenizer_class")
    return name.removesuffix("Fast") if name else None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file."""
    return read_json(path, dict[str, Any]) if path.is_file() else {}
