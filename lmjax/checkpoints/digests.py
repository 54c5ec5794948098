"""The digests of a checkpoint's files: written with it before it is visible, compared whenever it is read.

`digests.json` holds the step and, for every file of the step's folder, its size in bytes and the CRC-32 of each 16 MiB.
What storage does not notice, such as a flipped bit, a swapped file or one that is missing, is noticed here: damage of
up to 32 bits in a row always, any other with a probability of 1 - 2^-32. It is no protection against an attacker, who
could write the digests anew; SHA-256 would be none either, and takes three times as long. Of a checkpoint written to a
bucket it is the CRC-32C that the bucket itself keeps of every object, so that nothing is read back for it.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from lmjax.bucket import crc32c, objects
from lmjax.errors import UserError, is_bucket, shortened
from lmjax.files import read_json, unreadable, write_whole

PIECE = 1 << 24
DIGESTS_FILE = "digests.json"
CARRIED = "digests"  # the field of the extras which says that the checkpoint has digests
EXTRAS_FILE = Path("extras") / "metadata"  # where Orbax writes the extras
# What Orbax writes last of all, after the digests: times and names, of which nothing is restored.
BOOKKEEPING = ("_CHECKPOINT_METADATA", "commit_success.txt")


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be read back."""


class _Checksums(TypedDict, total=False):
    crc32: list[int]  # of every piece
    crc32c: str  # or else the bucket's own, of the whole


class FileDigest(_Checksums):
    """Of one file."""

    bytes: int


class Digests(TypedDict):
    """What `digests.json` holds; files by their paths below the step's folder."""

    step: int
    files: dict[str, FileDigest]


class _File(NamedTuple):
    path: Path
    bytes: int
    crc32c: str | None  # as the bucket says; None: the file is on none


def write_digests(folder: Path, step: int) -> None:
    """Writes the digests of all that is in `folder`, which becomes the checkpoint of `step`."""
    found = _files(folder)
    pieces = _digests({name: file for name, file in found.items() if file.crc32c is None})
    files: dict[str, FileDigest] = {name: {"bytes": found[name].bytes, "crc32": own} for name, own in pieces.items()}
    for name, file in found.items():
        if file.crc32c is not None:
            files[name] = {"bytes": file.bytes, "crc32c": file.crc32c}
    kept: Digests = {"step": step, "files": files}
    write_whole(folder / DIGESTS_FILE, dumps(kept, indent=1, sort_keys=True) + "\n")


def has_digests(folder: Path) -> bool:
    """Whether the checkpoint can be verified; one of an older version of lmjax cannot.

    Raises DamagedCheckpointError where it was written with digests and they are gone.
    """
    if (folder / DIGESTS_FILE).is_file():
        return True
    try:
        extras = read_json(folder / EXTRAS_FILE, dict[str, Any])
    except UserError as error:
        raise _damaged(folder, f"it has no {DIGESTS_FILE}, and {error}") from error
    if CARRIED in extras:
        raise _damaged(folder, f"it was written with {DIGESTS_FILE}, which is missing")
    return False


def verify(folder: Path, below: str = "", share: tuple[int, int] = (0, 1)) -> None:
    """Compares the checkpoint with its digests. Raises DamagedCheckpointError naming the first file that differs.

    The names and sizes of all files are compared, and the contents of those in the folder `below`: all by default.
    `share` = (i, n) reads every n-th file from the i-th on: n processes divide the work.
    """
    try:
        kept = read_json(folder / DIGESTS_FILE, Digests)
    except UserError as error:
        raise _damaged(folder, str(error)) from error
    if folder.name.isdigit() and int(folder.name) != kept["step"]:
        raise _damaged(folder, f"it was saved as step {kept['step']}")
    try:
        _compare(folder, kept["files"], below, share)
    except (OSError, UserError) as error:  # a file that cannot be read
        raise _damaged(folder, str(error)) from error


def _compare(folder: Path, wanted: dict[str, FileDigest], below: str, share: tuple[int, int]) -> None:
    found = _files(folder)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise _damaged(folder, f"{shortened(name)} is missing")
        if name not in wanted:
            raise _damaged(folder, f"{shortened(name)} was not written with it")
        size = found[name].bytes
        if size != wanted[name]["bytes"]:
            raise _damaged(folder, f"{name} holds {size:,} bytes; expected {wanted[name]['bytes']:,}")
    read = {name: file for name, file in found.items() if name.startswith(f"{below}/" if below else "")}
    first, every = share
    read = dict(list(read.items())[first::every])
    pieces = _digests({name: file for name, file in read.items() if "crc32" in wanted[name]})
    for name, file in read.items():
        whole = wanted[name].get("crc32c")
        same = pieces.get(name, 0) == wanted[name].get("crc32")
        if not (same if whole is None else (file.crc32c or crc32c(file.path)) == whole):
            raise _damaged(folder, f"the bytes of {name} are not those that were saved (CRC-32)")


def _damaged(folder: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{folder} is damaged: {reason}")


def _files(folder: Path) -> dict[str, _File]:
    """The files by their paths below the folder, largest first, so that several threads end together."""
    if is_bucket(folder):
        there = {name: about for name, about in objects(folder).items() if name not in (DIGESTS_FILE, *BOOKKEEPING)}
        ordered = sorted(there.items(), key=lambda item: (-item[1]["size"], item[0]))
        return {name: _File(folder / name, about["size"], about["crc32c"]) for name, about in ordered}
    apart = {folder / name for name in (DIGESTS_FILE, *BOOKKEEPING)}
    found = [path for path in folder.rglob("*") if not path.is_dir() and path not in apart]
    paths = sorted(found, key=lambda path: (-path.lstat().st_size, path))
    return {path.relative_to(folder).as_posix(): _File(path, path.stat().st_size, None) for path in paths}


def _digests(files: dict[str, _File]) -> dict[str, list[int]]:
    """The CRC-32 of each piece of each file; computing it leaves Python's lock, so that threads run side by side."""
    begins = {name: range(0, file.bytes, PIECE) for name, file in files.items()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = {name: pool.map(partial(_crc32, file.path), begins[name]) for name, file in files.items()}
        return {name: list(pieces) for name, pieces in found.items()}


def _crc32(path: Path, begin: int) -> int:
    buffer = memoryview(bytearray(min(PIECE, 1 << 20)))
    value, left = 0, PIECE
    try:
        with path.open("rb") if is_bucket(path) else path.open("rb", buffering=0) as file:
            file.seek(begin)
            while left and (count := file.readinto(buffer[:left])):
                value, left = zlib.crc32(buffer[:count], value), left - count
    except OSError as error:
        raise unreadable(path, error) from error
    return value
