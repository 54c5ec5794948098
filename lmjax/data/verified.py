"""Token shards are verified once for each file and machine: read whole, and compared with their manifest.

Which files have been is kept in the user's cache folder with what tells a file from another one: device, inode, size,
time of its last change, and the digest and the tokenizer's entries that it was compared with. What was copied, written
or restored since is verified again.
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

_LONG = 4e9  # bytes from which on it is said that they are about to be read


def verify_once(shards: TokenShards, entries: int, say: Callable[[str], None]) -> None:
    """Verifies those files of the folder that have not been on this machine, and says so.

    entries: of the tokenizer. Raises UserError naming the first file that is not what its manifest says, or that holds
    a token's id which the tokenizer does not have.
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
    """What was verified; nothing where that cannot be read, and the files are verified again."""
    try:
        return read_json(path, dict[str, str])
    except UserError:
        return {}


def _write(path: Path, verified: dict[str, str], say: Callable[[str], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(verified))
    except OSError as error:
        say(f"{path}: cannot be written ({error.strerror}), so that the shards are verified at every start")
