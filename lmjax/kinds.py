"""Which fields the settings of a kind use, and of which kind the files at a path are.

`check_unused` raises FieldError where a field is set that the settings' kind does not use. `source_kind` finds the kind
of the files at a path by their endings, or by the files of its folder.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from lmjax.errors import field_error

_TRAINING = {"vocab_size", "training_bytes"}  # of a tokenizer that is trained here
_SENTENCEPIECE = {"sentencepiece_model", "byte_fallback", "split_digits"}
_UNUSED: dict[str, dict[str, set[str]]] = {  # by the settings' class and kind
    "SourceSettings": {
        "embedded": {"path", "field", "documents", "on_bad_record"},
        "text": {"split", "field"},
        "jsonl": {"split", "documents"},
        "csv": {"split", "documents"},
        "parquet": {"split", "documents"},
        "tfds": {"documents"},
        "shards": {"split", "field", "documents", "on_bad_record"},
    },
    "DialogueSourceSettings": {
        "embedded": {"path", "answer_end", "on_bad_record", "fields", "ignore"},
        "file": {"split"},
    },
    "TokenizerSettings": {
        "byte": {*_TRAINING, *_SENTENCEPIECE, "lowercase"},
        "bpe": {*_SENTENCEPIECE, "lowercase"},
        "wordpiece": _SENTENCEPIECE,
        "sentencepiece": {"lowercase"},
    },
}

KINDS_BY_SUFFIX = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_ACCOMPANYING = {".md", ".json"}  # often beside the data of a folder: its kind only where there is nothing else
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
QUESTION_SETS = (  # of lmjax.evaluate.sets, which the command line names without importing them
    *("hellaswag", "piqa", "copa", "xcopa_zh", "arc_easy", "arc_easy_letter", "arc_challenge", "arc_challenge_letter"),
    *("mmlu", "lambada", "lambada_cloze", "winograd", "winogrande", "boolq", "rte", "sst2", "gsm8k", "squad_v2"),
    *("fr_en", "en_fr", "tldr", "eprstmt", "tnews", "ocnli", "bustm", "cluewsc"),
)


def endings_of(kind: str) -> list[str]:
    """The endings of files of a kind of text, without a compression's."""
    return [suffix for suffix, other in KINDS_BY_SUFFIX.items() if other == kind]


def check_unused(settings: Any) -> None:
    """Raises FieldError at the first field that the settings' kind does not use and that is not at its default."""
    for name in unused_fields(settings):
        default = next(field.default for field in dataclasses.fields(settings) if field.name == name)
        loaded = " with path" if type(settings).__name__ == "TokenizerSettings" and settings.path else ""
        expected = f"its default, {default!r}, as kind = {settings.kind!r}{loaded} does not use it"
        raise field_error(name, getattr(settings, name), expected, f"leave it out, or set it back to {default!r}")


def unused_fields(settings: Any, **changed: str) -> list[str]:
    """The fields that are not at their defaults and that the settings, with `changed` kind or path, do not use."""
    kind, path = changed.get("kind", settings.kind), changed.get("path", settings.path)
    unused = _unused(type(settings).__name__, kind, path)
    fields = dataclasses.fields(settings)
    return [field.name for field in fields if field.name in unused and getattr(settings, field.name) != field.default]


def without_unused(part: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of the settings class `part` without those that its kind does not use: older recipes have some."""
    unused = _unused(part, values.get("kind"), values.get("path"))
    return {name: value for name, value in values.items() if name not in unused}


def _unused(part: str, kind: Any, path: Any) -> set[str]:
    if not isinstance(kind, str):
        return set()
    if part == "TokenizerSettings" and path:  # vocab_size is compared with the file's entries when that is read
        return {"training_bytes", *_SENTENCEPIECE} | ({"lowercase"} if kind in ("bpe", "sentencepiece") else set())
    return _UNUSED.get(part, {}).get(kind, set())


def source_kind(path: str, kind: str) -> str:
    """The kind of the source at `path`: `kind`, unless that is "embedded", the default, which has no path.

    Raises FieldError where the kind cannot be found from the path.
    """
    if not path or kind != "embedded":
        return kind
    return KINDS_BY_SUFFIX.get(suffix_of(path)) or _kind_of_folder(path)


def _kind_of_folder(path: str) -> str:
    folder = Path(path)
    try:
        folder = folder.expanduser()
        held = {entry.name for entry in folder.iterdir()}
    except (OSError, ValueError, RuntimeError):
        expected = f"a path whose ending tells its kind ({', '.join(KINDS_BY_SUFFIX)}), or a folder that is there"
        raise field_error("path", path, expected, "set kind") from None
    if {"manifest.json", "documents.bin"} <= held:
        return "shards"
    if "dataset_info.json" in held and "features.json" in held:
        return "tfds"
    suffixes = {suffix_of(name) for _, _, names in _walk(folder) for name in names} & set(KINDS_BY_SUFFIX)
    kinds = {KINDS_BY_SUFFIX[suffix] for suffix in suffixes - _ACCOMPANYING or suffixes}
    if len(kinds) == 1:
        return kinds.pop()
    found = f"files of several kinds ({', '.join(sorted(suffixes))})" if kinds else "none of either"
    expected = f"files that end in one of {', '.join(KINDS_BY_SUFFIX)}, token shards or a prepared TFDS builder"
    raise field_error("path", path, f"{expected} in this folder, found {found}", "set kind, or name files by a glob")


def _walk(folder: Path) -> Any:
    """os.walk through links, without hidden folders and without circles."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        inner = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in inner if os.path.realpath(Path(place) / name) not in seen]
        yield place, folders, [name for name in names if not name.startswith(".")]


def plain_name(path: Path | str) -> str:
    """The file's name in lower case without the suffix of a compression: "a.jsonl" for "A.jsonl.gz"."""
    name = Path(path).name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSIONS if name.endswith(suffix)), name)


def suffix_of(path: Path | str) -> str:
    """The file's suffix in lower case without that of a compression: ".jsonl" for "A.jsonl.gz"."""
    return Path(plain_name(path)).suffix
