"""What own text holds, found before a tokenizer is made of it: its sources, documents, bytes, and the bytes of a token.

In: paths as a person names them, in a command. Out: settings of sources, and what they hold. What is no text, or too
little to cut a part off for validation, is an ArgumentError that names the path, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmjax.data.documents import Documents
from lmjax.data.open_files import find_files
from lmjax.data.sources import open_source
from lmjax.data.training_text import training_text
from lmjax.errors import ArgumentError, FieldError, UserError
from lmjax.files import user_path
from lmjax.kinds import KINDS_BY_SUFFIX, suffix_of
from lmjax.settings import SourceSettings, TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer

FEW_FILES = 20  # files of plain text below which each is cut, because too few would be left for validation
MOST_SOURCES = 64
READ_ALL = 64_000_000  # bytes up to which a source is read whole; of a larger one a sample tells its size
_SAMPLED = 1_000  # its documents
SAMPLE = 1_000_000  # bytes of text in which the bytes of a token are measured


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    source: SourceSettings
    documents: int
    bytes: int  # of UTF-8
    exact: bool  # whether all of it was read
    opening: str  # the beginning of its last document
    left_out: tuple[str, ...]  # files that are not read, in words


def survey(data: Sequence[str], field: str = "text", *, skip_bad: bool = False) -> list[Survey]:
    """The sources of files, folders and globs, and what they hold. `field` holds the text of a record.

    Fewer than 20 files of plain text are a source each. Raises ArgumentError for what cannot be read as text.
    """
    if not data:
        raise ArgumentError("--data: no file is named; expected files, folders or globs, such as --data my.txt")
    sources: list[SourceSettings] = []
    wrong: list[str] = []
    found: list[Survey] = []
    for path in data:
        try:
            own = _sources(path, field, "skip" if skip_bad else "error")
            sources += own
            if len(sources) <= MOST_SOURCES:
                found += map(_survey, own)
        except ArgumentError as error:
            wrong.append(str(error))
        except FieldError as error:
            wrong.append(f"--data {path}: {_of_path(error, path)}")
        except UserError as error:
            wrong.append(f"--data {path}: {_as_options(str(error))}")
    if len(sources) > MOST_SOURCES:
        fix = "name their folder, or quote the glob: --data 'texts/*.txt'"
        wrong.append(f"--data: {len(sources)} sources: expected at most {MOST_SOURCES}; {fix}")
    if wrong:
        raise ArgumentError("\n".join(wrong))
    return found


def bytes_of_token(sources: Sequence[SourceSettings], settings: TokenizerSettings) -> float:
    """The mean bytes of a token in 1 MB of the sources, by a tokenizer of these settings that is trained on it."""
    texts, read = training_text(sources, SAMPLE)
    tokens = sum(map(len, build_tokenizer(settings, texts).encode_batch(texts)))
    return sum(size for _, size, _ in read) / max(1, tokens)


def _sources(path: str, field: str, on_bad_record: str) -> list[SourceSettings]:
    kind = _kind(path)
    if kind == "text":
        files = find_files(path, (".txt",), otherwise=(".md",))
        names = [str(file) for file in files.paths] if len(files.paths) < FEW_FILES else [path]
        return [SourceSettings("text", name, on_bad_record=on_bad_record) for name in names]  # type: ignore[arg-type]
    if kind == "shards":
        raise ArgumentError(f"--data {path}: holds tokens; expected text; lmjax data prepare wrote a recipe beside it")
    return [SourceSettings(kind, path, field=field, on_bad_record=on_bad_record)]  # type: ignore[arg-type]


def _kind(path: str) -> str:
    """The kind of the files at a path, where a file of an unknown ending is plain text."""
    suffix = suffix_of(path)
    known = suffix in KINDS_BY_SUFFIX
    if known or user_path(path).is_dir():
        return SourceSettings(path=path).kind
    return "text"


def _survey(settings: SourceSettings) -> Survey:
    source = open_source(settings)
    if not source.size_bytes:
        raise UserError("is empty; expected text")
    exact = source.size_bytes <= READ_ALL or len(source) == 1
    count = len(source) if exact else min(len(source), _SAMPLED)
    total, last = 0, ""
    for place in range(count):
        index = len(source) * (place + 1) // count - 1
        texts, _ = source.read(index, index + 1)
        for text in texts:
            _check_text(text, source, index)
            total += len(text.encode("utf-8", "surrogatepass"))
            last = text or last
    if not last.strip():
        raise UserError("holds no text, but white space; expected text")
    whole = total if exact else total * len(source) // count
    return Survey(settings, len(source), whole, exact, last[:1000], tuple(source.left_out))


def _check_text(text: str, source: Documents, index: int) -> None:
    if "\0" in text:
        where = source.paths[0] if len(source.paths) == 1 else f"document {index + 1}"
        raise UserError(f"{where}: holds NUL characters, as binary files do; expected text; name files of text")


def _of_path(error: FieldError, path: str) -> str:
    """An error of `source.path` in the words of `--data`."""
    found = error.rest.removeprefix(f" = {path!r}: ")
    what, _, fix = found.rpartition("; ")
    return f"{what}; name the files of one kind by a glob: --data '{path}/*.txt'" if "set kind" in fix else found


def _as_options(message: str) -> str:
    """An error of a source's settings in the words of the options that give them."""
    for field, option in (
        ('set source.on_bad_record = "skip"', "leave it out by --skip-bad"),
        ("source.field", "--field"),
    ):
        message = message.replace(field, option)
    return message
