"""A workdir on a bucket: its checkpoints are written there at once, its other files here, and mirrored at every save.

In: the URL of a workdir. Out: a folder of this machine that stands for it; see `bucket.folder_here`. When a run begins,
the folder becomes what the bucket holds. A bucket has no locks that a killed run would give back, so that the run that
began last has the workdir: it writes its name into `.run.json`, and an earlier one that still runs sees that at its
next save, before it writes, and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypedDict

from lmjax.bucket import CHECKPOINTS, checkpoints_of, crc32c, file_system, objects, remote_of
from lmjax.errors import UserError, clear_disk_errors, is_bucket
from lmjax.files import read_json, safe_name, write_whole
from lmjax.parallel.processes import barrier, first_before_others, is_first

RUN_FILE = ".run.json"  # on the bucket: whose the workdir is
MIRRORED_FILE = ".mirrored.json"  # here: what of the folder is on the bucket
OWN = (".lock", MIRRORED_FILE, RUN_FILE)


class _Run(TypedDict):
    run: str
    host: str
    process: int


class _Mirrored(TypedDict):
    run: str
    files: dict[str, list[int]]  # size and time of each when it was last the same as on the bucket


@contextmanager
def staged(workdir: Path, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes `folder`, which stands for a workdir on a bucket, what is there; what it is at the end is there, too.

    Every process of a run comes here. Raises UserError where the bucket cannot be read or written.
    """
    if not is_bucket(workdir):
        yield
        return
    with clear_disk_errors(workdir):
        if is_first():
            run: _Run = {"run": uuid.uuid4().hex, "host": platform.node(), "process": os.getpid()}
            file_system().call("GET", "b/{}", workdir.parts[2])  # as Orbax does; rights to objects do not include it
            (workdir / RUN_FILE).write_bytes(json.dumps(run).encode())
        with first_before_others("workdir fetched"):
            _fetch(workdir, folder)
        barrier("workdir fetched by all")
    say(f"{workdir}: mirrored at every save from {folder}; its checkpoints are written there at once")
    try:
        yield
    except BaseException:
        with contextlib.suppress(UserError):  # the error that ended the run is reported already
            mirror(folder)
        raise
    mirror(folder)


def mirror(folder: Path) -> None:
    """Makes the bucket's files those of a run's folder, or of a stage's; by the first process. Elsewhere, nothing.

    Raises UserError where another run has the workdir, and where the bucket cannot be written.
    """
    remote = remote_of(folder)
    if remote is None or not is_first():
        return
    folder, remote = _whole(folder, remote)
    with clear_disk_errors(remote):
        kept = read_json(folder / MIRRORED_FILE, _Mirrored, fix="run the same command again")
        _check_own(remote, kept["run"])
        found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        known = kept["files"]
        for name in sorted(known.keys() - found.keys()):
            (remote / name).unlink(missing_ok=True)
            del known[name]
        for name, path in sorted(found.items()):
            state = _state(path)  # before it is read: what is added meanwhile is sent the next time
            if known.get(name) != state:
                file_system().put_file(str(path), str(remote / name))
                known[name] = state
        write_whole(folder / MIRRORED_FILE, json.dumps(kept))


def share(folder: Path) -> None:
    """Gives the other processes of the run, whose folder may be another machine's, what the first one has written."""
    remote = remote_of(folder)
    if remote is None:
        return
    mirror(folder)
    barrier("mirrored")
    if not is_first():
        folder, remote = _whole(folder, remote)
        with clear_disk_errors(remote):
            _fetch(remote, folder)
    barrier("shared")


def move(own: Path, old: Path) -> None:
    """Renames a stage's folder, and with it the checkpoints that it has on a bucket; an `old` one is deleted first."""
    shutil.rmtree(old, ignore_errors=True)
    if remote_of(own) is not None:
        here, there = checkpoints_of(own), checkpoints_of(old)
        with clear_disk_errors(there):
            for begin, to in ((there, None), (here, there)):
                for name in objects(begin):
                    if to is not None:
                        file_system().copy(str(begin / name), str(to / name))
                    (begin / name).unlink()
    own.replace(old)


def _whole(folder: Path, remote: Path) -> tuple[Path, Path]:
    """Of a stage's folder, its pipeline's, here and on the bucket."""
    while remote_of(folder.parent) is not None:
        folder, remote = folder.parent, remote.parent
    return folder, remote


def _fetch(workdir: Path, folder: Path) -> None:
    """Makes the folder what the bucket holds, checkpoints aside; what is the same already is left."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {name: about for name, about in objects(workdir).items() if _belongs(name)}
    for path in list(_files(folder)):
        about = there.get(path.relative_to(folder).as_posix())
        if about is None or about["size"] != path.stat().st_size or about["crc32c"] != crc32c(path):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):  # what is below another comes before it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for name in there:
        path = folder.joinpath(*(safe_name(part, workdir) for part in name.split("/")))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (workdir / name).read_bytes())
    run = read_json(workdir / RUN_FILE, _Run)["run"]
    mirrored: _Mirrored = {"run": run, "files": {name: _state(folder / name) for name in there}}
    write_whole(folder / MIRRORED_FILE, json.dumps(mirrored))


def _state(path: Path) -> list[int]:
    """What tells that a file has changed."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _check_own(remote: Path, run: str) -> None:
    other = read_json(remote / RUN_FILE, _Run)
    if other["run"] != run:
        raise UserError(
            f"{remote}: another run has begun with it (process {other['process']} of {other['host']}); this one ends, "
            "for two would spoil each other's checkpoints; choose another --workdir for one of them"
        )


def _belongs(name: str) -> bool:
    """Whether a file is mirrored: it is no checkpoint's, and not half written."""
    parts = PurePosixPath(name).parts
    return parts[-1] not in OWN and CHECKPOINTS not in parts[:2] and not any(p.endswith(".partial") for p in parts)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and _belongs(path.relative_to(folder).as_posix()):
            yield path
