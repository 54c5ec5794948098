"""The records of published files of questions: JSON lines, CSV with and without a header, TSV.

A record that cannot be read is a ValueError, and the question set names its file and number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import utf8_of
from lmjax.data.record_files import csv_cells, rows, tab_cells

Some = TypeVar("Some")


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, or the rows of CSV by the names of its header."""
    return _readable(rows(path), ", expected an object in each line")


def cells(path: Path) -> Iterator[list[str]]:
    """The rows of CSV without a header."""
    return _readable(csv_cells(utf8_of(path), path))


def tabbed(path: Path) -> Iterator[list[str]]:
    """The cells of each line of TSV, in which quotes mean nothing. Only a line feed ends a line."""
    return _readable(tab_cells(utf8_of(path), path))


def _readable(read: Iterator[tuple[str, Some | BadRecordError]], expected: str = "") -> Iterator[Some]:
    for place, row in read:
        if isinstance(row, BadRecordError):
            raise ValueError(f"{place}: {row}{expected}")
        yield row
