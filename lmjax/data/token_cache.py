"""Token shards and trained tokenizers that the stages of a pipeline and several runs share, kept by digest.

In: a source and a tokenizer, or the text that a tokenizer is trained on. Out: the token shards, or the tokenizer's
files, made by the first run that needs them and found by the others. The key of token shards is made of how the source
is read, the checksums of its files and the tokenizer's fingerprint, so that a changed file is another entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from lmjax.data.documents import Documents
from lmjax.data.shard_writer import CannotWriteError
from lmjax.data.text_sources import READ_WHOLE
from lmjax.data.token_shards import MANIFEST, TokenShards
from lmjax.data.write_shards import (
    SHARD_TOKENS,
    Encoder,
    Report,
    check_source,
    find_or_prepare,
    open_shards,
    open_text,
)
from lmjax.errors import UserError
from lmjax.files import read_json_if_there, write_whole
from lmjax.settings import SourceSettings, TokenizerSettings


@dataclass(frozen=True)
class TokenCache:
    """The folder that runs share. `chosen`: the user names it, so that it is an error when it cannot be written."""

    folder: Path
    chosen: bool = False

    def cannot_write(self, reason: object, instead: str) -> str:
        """The line for a cache that cannot be written. Raises UserError where the user chose it."""
        if self.chosen:
            fix = "free space, choose another folder, or leave the option out"
            raise UserError(f"--cache {self.folder}: cannot be written ({reason}); {fix}")
        return f"the cache {self.folder} cannot be written ({reason}): {instead}"


class _Note(TypedDict):
    """What a workdir remembers of shards that are in a cache."""

    source: dict[str, Any]  # what the shards were made from
    cache: str


def token_shards(
    settings: SourceSettings,
    tokenizer: Encoder,
    folder: Path,
    cache: TokenCache | None,
    *,
    fingerprint: str,
    say: Callable[[str], None],
    workers: int | None = None,
    report: Report | None = None,
) -> TokenShards:
    """The token shards of a source, from `folder`, a folder of the workdir, where they are there, or else of the cache.

    Beside `folder` a note keeps what the shards were made from, so that a resumed run reads the same text. Without a
    cache, and where it cannot be written, the shards are made in `folder`. `say` receives how many tokens there are and
    where they are from. Raises UserError for bad input, a changed source, and a cache of the user's choice that cannot
    be written.
    """
    parts: dict[str, Any] = {"fingerprint": fingerprint, "workers": workers, "report": report, "say": say}
    place, name = "", ""
    if settings.kind == "shards" or cache is None or (folder / MANIFEST).is_file():
        shards = open_shards(settings, tokenizer, folder, **parts)
    else:
        source = open_text(settings, say)
        entry = cache.folder / "tokens" / f"{settings.kind}-{_key(source, fingerprint)}"
        cached = _is_cached(source, entry, folder, cache, say)
        try:
            shards = _find_or_prepare(source, tokenizer, entry, cached, parts)
            place, name = f", {'from' if cached else 'kept in'} the cache {cache.folder}", source.name
            _remember(source, folder, cache)
        except CannotWriteError as error:
            say(cache.cannot_write(error.__cause__, f"the tokens of {source.name} are made in {folder}"))
            shards = find_or_prepare(source, tokenizer, folder, **parts)
    manifest, bad = shards.manifest, ""
    if manifest.skipped:
        bad = f", {manifest.skipped:,} bad records skipped, such as {manifest.skipped_examples[0]}"
    say(f"{name or manifest.source_name}: {shards.tokens:,} tokens in {len(shards):,} documents{place}{bad}")
    return shards


def _is_cached(source: Documents, entry: Path, folder: Path, cache: TokenCache, say: Callable[[str], None]) -> bool:
    """Whether the cache holds the entry. Raises UserError where the workdir's tokens were made from another source."""
    path = _note_path(folder)
    note = read_json_if_there(path, _Note, "delete the file")
    if note is not None:
        check_source(source, note["source"], path, "restore the source, or choose another --workdir")
    cached = is_there(entry / MANIFEST)
    if note is not None and not cached:
        gone = f"its tokens were in the cache {note['cache']}, and are not in {cache.folder}"
        say(f"{source.name}: {gone}; they are made again")
    return cached


def _find_or_prepare(
    source: Documents, tokenizer: Encoder, entry: Path, cached: bool, parts: dict[str, Any]
) -> TokenShards:
    try:
        return find_or_prepare(source, tokenizer, entry, **parts)
    except CannotWriteError:
        raise
    except OSError as error:  # no right to look into it
        raise CannotWriteError(str(error)) from error
    except UserError as error:
        if not cached:
            raise
        raise UserError(f"{error}; or delete {entry}, and the next run makes it again") from error


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; False without the right to look."""
    try:
        return path.exists()
    except OSError:
        return False


def _note_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _remember(source: Documents, folder: Path, cache: TokenCache) -> None:
    note: _Note = {"source": source.identity | {"shard_tokens": SHARD_TOKENS}, "cache": str(cache.folder)}
    if read_json_if_there(_note_path(folder)) != note:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_whole(_note_path(folder), json.dumps(note))


def _key(source: Documents, fingerprint: str) -> str:
    """Of what decides the shards. A file that its checksum reads in part alone is also known by its time."""
    times = [path.stat().st_mtime_ns for path in source.paths if path.stat().st_size > READ_WHOLE]
    builder = source.settings.path if source.settings.kind == "tfds" else ""  # known by its ends and size alone
    return _digest(source.identity, SHARD_TOKENS, times, builder, fingerprint)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_entry(cache: TokenCache, settings: TokenizerSettings, texts: Sequence[str]) -> Path:
    """Where the cache keeps the tokenizer that these texts train: by settings, text and the libraries' versions."""
    digest = hashlib.sha256()
    for document in texts:
        raw = document.encode("utf-8", "surrogatepass")
        digest.update(f"{len(raw)}:".encode() + raw)
    versions = [metadata.version(name) for name in ("tokenizers", "sentencepiece")]
    return cache.folder / "tokenizers" / f"{settings.kind}-{_digest(asdict(settings), digest.hexdigest(), versions)}"


def publish_tokenizer(cache: TokenCache, folder: Path, entry: Path, say: Callable[[str], None]) -> None:
    """Copies a trained tokenizer's files into the cache, all at once; those of another process that was first stay."""
    partial = entry.with_name(f"{entry.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        partial.rename(entry)
    except OSError as error:
        if not is_there(entry):
            say(cache.cannot_write(error, "the tokenizer is kept in the workdir alone"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
