"""The table of a sweep: one JSON object a line, one line for each run that has ended, appended and never changed.

Several processes may append at once, and each may be killed at any byte: a line counts once its end is written, and the
next writer drops what a dead one left without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmjax.errors import UserError, clear_disk_errors, shortened
from lmjax.files import MalformedJsonError, parse_json, read_bytes

Row = dict[str, Any]  # of strings, numbers and None; a number that is not finite is None

DONE, FAILED, DIVERGED = "done", "failed", "diverged"


class SweepTable:
    """The file at `path`, which need not exist. `say` receives a sentence about a line that was dropped."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say

    def rows(self) -> dict[str, Row]:
        """The rows by the name of their run; of several of one name, the last.

        An unfinished last line is no row. Raises UserError, naming the line, for another line that is no row.
        """
        if not self.path.exists():
            return {}
        lines = read_bytes(self.path).split(b"\n")
        found: dict[str, Row] = {}
        for number, line in enumerate(lines[:-1], start=1):
            where = f"{self.path}:{number}"
            with contextlib.suppress(MalformedJsonError):
                row = parse_json(line)
                if isinstance(row, dict) and isinstance(row.get("name"), str):
                    found[row["name"]] = row
                    continue
            what = f"{where}: found {shortened(line.decode(errors='replace'))}"
            raise UserError(f"{what}: expected the row of a run, with its name; delete the line: its run runs again")
        return found

    def append(self, row: Row) -> None:
        """Adds a row, on the disk when this returns. Raises UserError where the disk is full or refuses."""
        values = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        with clear_disk_errors(self.path.parent), self._locked() as file:
            end = self._drop_torn(file)
            try:
                written = os.write(file, line)
                if written < len(line):
                    os.write(file, line[written:])  # raises where the disk is full
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _drop_torn(self, file: int) -> int:
        """Cuts off what follows the last whole line; the size of the file after it."""
        size = os.fstat(file).st_size
        whole = os.pread(file, size, 0).rfind(b"\n") + 1
        if whole < size:
            self._say(f"{self.path}: its last line was not finished, and is dropped: its run runs again")
            os.ftruncate(file, whole)
        return whole


def write_parquet(rows: dict[str, Row], path: Path) -> None:
    """The rows as a Parquet file; a column that a row lacks is null there. Raises UserError."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    with clear_disk_errors(path.parent):
        pq.write_table(pa.table(columns), path)
