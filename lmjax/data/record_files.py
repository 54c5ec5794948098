"""The records of JSON lines, JSON lists, CSV, TSV and Parquet files, compressed or not.

In: a file. Out: its rows in order, each with its place in the file. A row that cannot be read is yielded as a
BadRecordError, so that the caller decides whether to skip it; a file that cannot be read raises one with its path.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import UTF8_MARK, Buffer, suffix_of, utf8_of
from lmjax.errors import UserError, shortened
from lmjax.files import MalformedJsonError, decode_text, parse_json

Row = dict[str, Any] | BadRecordError  # a record, or why it cannot be read
Cells = list[str] | BadRecordError

RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LONGEST_CELL = 2**31 - 1  # characters of a CSV cell; Python's own limit is 131,072


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each record of a .jsonl, .json, .csv, .tsv or .parquet file with its place, in order.

    Raises BadRecordError where the file cannot be read.
    """
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return parquet_rows(path)
    data = utf8_of(path)
    return {".csv": csv_rows, ".tsv": tsv_rows, ".json": json_rows}.get(suffix, line_rows)(data, path)


def line_rows(data: Buffer, where: object) -> Iterator[tuple[str, Row]]:
    """Each line that is not blank as a JSON object. Only a line feed ends a line."""
    return ((f"{where}:{number}", json_object(line)) for number, line in lines(data) if not line.isspace())


def lines(data: Buffer) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1. Only a line feed ends a line."""
    start, number = 3 if data[:3] == UTF8_MARK else 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        line, start, number = data[start:end], end + 1, number + 1
        if line:
            yield number, line


def tab_cells(data: Buffer, where: object) -> Iterator[tuple[str, Cells]]:
    """The cells of each line of TSV that is not empty. Quotes and NULs are text, as in GLUE's files."""
    for number, line in lines(data):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            yield f"{where}:{number}", BadRecordError(f"byte {line[error.start]:#04x} is not UTF-8")
        else:
            if text:
                yield f"{where}:{number}", text.split("\t")


def tsv_rows(data: Buffer, where: object) -> Iterator[tuple[str, Row]]:
    """The lines of TSV below its header, by column. Raises BadRecordError for a header that names a column twice."""
    return _below_header(tab_cells(data, where))


def json_rows(data: Buffer, where: object) -> Iterator[tuple[str, Row]]:
    """The objects of a .json file: a list, one object, or JSON lines."""
    items = listed(data, where)
    if items is None:
        return line_rows(data, where)
    return ((f"{where}: record {number}", _object(item)) for number, item in enumerate(items, start=1))


def listed(data: Buffer, where: object) -> list[Any] | None:
    """The items of a JSON list, or of one object; None for JSON lines. Raises BadRecordError for neither."""
    raw = data[:].removeprefix(UTF8_MARK).lstrip()
    if not raw or (raw[:1] == b"{" and isinstance(json_object(raw.split(b"\n", 1)[0]), dict)):
        return None
    try:
        value = parse_json(decode_text(data[:], where))
    except (MalformedJsonError, UserError) as error:
        if raw[:1] == b"{":
            return None
        if isinstance(error, UserError):
            raise BadRecordError(str(error)) from None
        place = f"{where}:{error.line}" if error.line else where
        raise BadRecordError(f"{place}: expected a list of JSON objects, or one a line ({error}); fix it") from None
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise BadRecordError(f"{where}: expected a list of JSON objects, found {type(value).__name__}; fix it")
    return value


def json_object(line: bytes) -> Row:
    """The JSON object of a line, or the BadRecordError."""
    try:
        return _object(parse_json(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRecordError(f"byte {line[error.start]:#04x} is not UTF-8")
    except MalformedJsonError as error:
        return BadRecordError(f"malformed JSON ({error})")


def _object(value: object) -> Row:
    if isinstance(value, dict):
        return value
    return BadRecordError(f"expected a JSON object, found {type(value).__name__}")


def csv_rows(data: Buffer, where: object) -> Iterator[tuple[str, Row]]:
    """The rows of CSV (RFC 4180) below its header, by column; the place is the line where a row begins.

    A row with more or fewer cells than the header, an open quote or bytes that are not UTF-8 is a bad record. Raises
    BadRecordError for a header that names a column twice.
    """
    return _below_header(csv_cells(data, where))


def csv_cells(data: Buffer, where: object) -> Iterator[tuple[str, Cells]]:
    """The cells of each row of CSV (RFC 4180) that is not empty; the place is the line where it begins."""
    csv.field_size_limit(LONGEST_CELL)
    text = data[:].removeprefix(UTF8_MARK).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        place = f"{where}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, BadRecordError(f"malformed CSV ({error})")
            continue
        if bad := _escaped(cells):
            yield place, BadRecordError(f"byte {bad:#04x} is not UTF-8")
        elif cells:
            yield place, cells


def _below_header(rows: Iterator[tuple[str, Cells]]) -> Iterator[tuple[str, Row]]:
    header: list[str] | None = None
    for place, cells in rows:
        if header is None:
            if isinstance(cells, BadRecordError) or len(set(cells)) < len(cells):
                found = cells if isinstance(cells, BadRecordError) else shortened(cells)
                expected = "expected a header of different names in UTF-8"
                raise BadRecordError(f"{place}: {expected}, found {found}; fix it")
            header = cells
        else:
            yield place, cells if isinstance(cells, BadRecordError) else _row(header, cells)


def _row(header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return BadRecordError(f"expected {len(header)} cells as in the header, found {len(cells)}")
    return dict(zip(header, cells, strict=True))


def _escaped(cells: list[str]) -> int | None:
    """The first byte that is not UTF-8; None where there is none."""
    escaped = (
        ord(char) - 0xDC00 for cell in cells if not cell.isascii() for char in cell if "\udc80" <= char <= "\udcff"
    )
    return next(escaped, None)


def parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a Parquet file. Raises BadRecordError where the file or a page is damaged."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    number += 1
                    yield f"{path}:{number}", _arrow_row(batch, index)
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from None


def _arrow_row(batch: Any, index: int) -> Row:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            return BadRecordError(f"column {name!r} cannot be read ({shortened(str(error))})")
    return row


def damaged_parquet(path: Path, error: BaseException) -> BadRecordError:
    """The error for a file that is not Parquet or has damaged pages."""
    reason = " ".join(str(error).split())[:200]
    return BadRecordError(f"{path}: cannot be read as Parquet ({reason}); a damaged file: fetch it again")
