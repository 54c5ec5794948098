"""Brings the tables of a sweep that ran in several workdirs together, for `lmjax sweep --merge`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lmjax.errors import UserError, clear_disk_errors, nearest, require
from lmjax.fields import require_local
from lmjax.files import user_path
from lmjax.run_files import TABLE_FILE
from lmjax.runs.sweep_rows import check_table
from lmjax.scaling.sweep_table import Row, SweepTable
from lmjax.settings import Sweep


def merge_tables(
    sweep: Sweep, workdir: Path, tables: Sequence[Path | str], say: Callable[[str], None] = print
) -> dict[str, Row]:
    """Appends to the table of `workdir` the rows of other tables that it lacks; its rows afterwards.

    `tables` are files, or the workdirs that hold them. Of several rows of one run the first counts, and those of
    `workdir` come first, so that a second call changes nothing. Rows alone are brought together: a share that is not
    finished continues in its own workdir. Raises UserError, before anything is written, for a table that is absent and
    for a row that is not of this sweep or of another recipe than the sweep's run of that name.
    """
    require_local("workdir", workdir)
    folder = user_path(workdir)
    own = SweepTable(folder / TABLE_FILE, say)
    check_table(sweep, own.path, own.rows())
    found = [(path, _rows(sweep, path, say)) for path in map(_table, tables)]
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for path, rows in found:
        there = own.rows()
        lacking = [row for name, row in rows.items() if name not in there]
        for row in lacking:
            own.append(row)
        say(f"{path}: {len(lacking)} rows added, {len(rows) - len(lacking)} were there already")
    return own.rows()


def _table(given: Path | str) -> Path:
    require_local("merge", given)
    path = user_path(given)
    path = path / TABLE_FILE if path.is_dir() else path
    require(
        path.is_file(), "--merge", str(path), f"the {TABLE_FILE} of a sweep, or its workdir", "give one that exists"
    )
    return path


def _rows(sweep: Sweep, path: Path, say: Callable[[str], None]) -> dict[str, Row]:
    rows, names = SweepTable(path, say).rows(), [one.name for one in sweep.runs]
    check_table(sweep, path, rows)
    for name in rows:
        if name not in names:
            raise UserError(f"{path}: row {name!r} is of no run of the sweep {sweep.name!r}; {nearest(name, names)}")
    return rows
