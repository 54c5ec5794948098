"""The rows of published tables, by column: several CSV or TSV files of one form are read as one.

In: paths, also of compressed files, and the columns that are needed. Out: each row with its place. More columns may be
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lmjax.data.documents import BadRecordError
from lmjax.data.record_files import rows
from lmjax.errors import UserError, shortened


def table_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Raises UserError for a file that cannot be read, lacks a column or has no row, and for a row of other cells."""
    for path in paths:
        empty = True
        for place, row in rows(path):
            empty = False
            if isinstance(row, BadRecordError):
                raise UserError(f"{place}: {row}; take the published file")
            missing = [name for name in columns if name not in row]
            if missing:
                found = f"no column {' and '.join(map(repr, missing))} among {shortened(list(row))[1:-1]}"
                raise UserError(f"{place}: {found}; expected {', '.join(columns)}: take the published file")
            yield place, row
        if empty:
            raise UserError(f"{path}: it has no row; expected a header with {', '.join(columns)}, and rows below it")
