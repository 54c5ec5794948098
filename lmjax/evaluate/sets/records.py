"""The records of published files of questions: JSON lines, CSV with and without a header, TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmjax.data.documents import BadRecordError
from lmjax.data.record_files import LONGEST_CELL, rows
from lmjax.files import read_text


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, or the rows of CSV by the names of its header. Raises ValueError for a bad one."""
    for place, row in rows(path):
        if isinstance(row, BadRecordError):
            raise ValueError(f"{place}: {row}, expected an object in each line")
        yield row


def cells(path: Path) -> Iterator[list[str]]:
    """The rows of CSV without a header, without empty lines. Raises ValueError for malformed CSV."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        yield from filter(None, csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"malformed CSV ({error})") from error


def tabbed(path: Path) -> Iterator[list[str]]:
    """The cells of each line of TSV, in which quotes mean nothing. Only a line feed ends a line."""
    return (line.removesuffix("\r").split("\t") for line in read_text(path).split("\n") if line)
