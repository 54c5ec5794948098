"""Verifies token shards against their manifest, once for each file and machine.

The user's cache folder holds the identities of verified files: device, inode, size, time of the last change, and the
digest and vocabulary size of the comparison. A file that was copied, written or restored since is verified again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmjax.data.token_shards import ShardFile, TokenShards, verify_file
from lmjax.errors import UserError
from lmjax.files import cache_folder, read_json, write_whole

_LONG = 4e9  # bytes; more are announced before they are read


def verify_once(shards: TokenShards, entries: int, say: Callable[[str], None]) -> None:
    """Verifies the files of the folder that this machine has not verified yet, and reports it by `say`.

    entries: the vocabulary size of the tokenizer. Raises UserError, which names the first file that differs from its
    manifest or holds an id outside the vocabulary.
    """
    record = (
        cache_folder() / "verified" / f"{hashlib.sha256(str(shards.folder.resolve()).encode()).hexdigest()[:32]}.json"
    )
    known = _read(record)
    now = {file.name: _identity(shards.folder / file.name, file, entries) for file in shards.manifest.files}
    unknown = [file for file in shards.manifest.files if known.get(file.name) != now[file.name]]
    if not unknown:
        return
    size = sum(file.bytes for file in unknown)
    if size > _LONG:
        say(f"{shards.folder}: verifying {size / 1e9:.1f} GB of token shards, once on this machine")
    started = time.monotonic()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = [
            pool.submit(verify_file, shards.folder / file.name, file.sha256, shards.dtype_of(file), entries)
            for file in unknown
        ]
        for check in checks:
            check.result()
    seconds = time.monotonic() - started
    say(f"{shards.folder}: {len(unknown)} files of {size / 1e6:,.1f} MB verified in {seconds:.1f} s")
    _write(record, now, say)


def _identity(path: Path, file: ShardFile, entries: int) -> str:
    status = path.stat()
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, file.sha256, entries)
    return " ".join(map(str, parts))


def _read(path: Path) -> dict[str, str]:
    """The identities of verified files; none where the record cannot be read, so that files are verified again."""
    try:
        return read_json(path, dict[str, str])
    except UserError:
        return {}


def _write(path: Path, verified: dict[str, str], say: Callable[[str], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(verified))
    except OSError as error:
        say(f"{path}: cannot be written ({error.strerror}): the shards are verified at every start; set XDG_CACHE_HOME")
