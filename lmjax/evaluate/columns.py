"""The rows of published tables, by column: several CSV or TSV files of one form are read as one.

In: paths, also of compressed files, and the columns that are needed. Out: each row with its place. More columns may be
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import suffix_of, utf8_of
from lmjax.data.record_files import Row, rows
from lmjax.errors import UserError, shortened
from lmjax.files import decode_text


def table_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Raises UserError for a file that cannot be read, lacks a column or has no row, and for a row of other cells."""
    for path in paths:
        empty = True
        for place, row in _tab_rows(path) if suffix_of(path) == ".tsv" else rows(path):
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


def _tab_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of cells between tabs below a header; quotes are text."""
    header: list[str] | None = None
    for number, line in enumerate(decode_text(utf8_of(path)[:], path).split("\n"), 1):
        cells = line.removesuffix("\r").split("\t")
        if not line.strip():
            continue
        if header is None:
            header = cells
        elif len(cells) != len(header):
            error = f"expected {len(header)} cells as in the header, found {len(cells)}"
            yield f"{path}:{number}", BadRecordError(error)
        else:
            yield f"{path}:{number}", dict(zip(header, cells, strict=True))
