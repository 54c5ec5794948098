"""Documents in text files: whole files, lines, blank-line blocks, and the records of JSON lines, JSON lists and CSV.

A file is scanned once for its line ends and then read through a memory map. A compressed file, one in UTF-16, a JSON
list and CSV have no random access: they are read into memory, one file at a time, so that many files of moderate size
are better than one of many gigabytes. A byte order mark at the start of a file is dropped. Lines of white space are
separators, not documents.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmjax.data.documents import BadRecordError, Documents, checked_text
from lmjax.data.open_files import UTF8_MARK, Buffer, find_files, suffix_of, utf8_of
from lmjax.data.record_files import csv_rows, json_object, listed
from lmjax.errors import UserError, nearest
from lmjax.files import unreadable
from lmjax.kinds import KINDS_BY_SUFFIX
from lmjax.settings import SourceSettings

Spans = tuple[np.ndarray, np.ndarray]  # first byte of each document and the byte after its last, int64

_NEWLINE = 10
_BLOCK = 1 << 26  # bytes scanned at a time, which bounds the memory of the scan
_SAMPLES, _SAMPLE = 64, 1 << 18  # of the checksum of a big file: the number of parts, and their bytes
READ_WHOLE = _SAMPLES * _SAMPLE  # bytes: of files up to this size `checksum` reads everything
_SPACES = np.frombuffer(b" \t\r\v\f", np.uint8)


def checksum(path: Path) -> str:
    """sha256 of the file's size and contents; of a file above 16 MiB, of 64 parts spread evenly over it."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        starts: Sequence[int] = range(0, size, _SAMPLE)
        if len(starts) > _SAMPLES:
            starts = [sample * (size - _SAMPLE) // (_SAMPLES - 1) for sample in range(_SAMPLES)]
        with path.open("rb") as file:
            for at in starts:
                file.seek(at)
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


class FileDocuments(Documents):
    """Documents of text files, sorted by path. `settings.documents` says what one document is."""

    suffixes: tuple[str, ...] = (".txt",)
    otherwise: tuple[str, ...] = (".md",)  # in a folder without any of `suffixes`

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.paths, self.left_out = find_files(settings.path, self.suffixes, otherwise=self.otherwise)
        self._check_paths()
        self._open: tuple[int, Buffer] | None = None
        self._newlines_before = (-1, 0, 0)  # file, byte offset, newlines before it, from which counting continues
        self._unreadable: dict[int, str] = {}
        self._sizes = [0] * len(self.paths)
        self._spans: list[Spans] = []
        for number in range(len(self.paths)):
            self._spans.append(self._scan(number))
        counts = [len(starts) for starts, _ in self._spans]
        self.left_out = self.left_out + [f"{counts.count(0):,} empty"] * (0 in counts)
        self._first_of_file = np.concatenate([[0], np.cumsum(counts)]).tolist()
        super().__init__(settings, self._first_of_file[-1])

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes)

    @property
    def contents(self) -> list[list[object]]:
        return [[path.name, checksum(path)] for path in self.paths]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}  # a memory map cannot be sent to a worker process

    def _check_paths(self) -> None:
        """Raises UserError for a file that this kind would silently misread."""
        for path in self.paths:
            kind = KINDS_BY_SUFFIX.get(suffix_of(path), "text")
            if kind != "text":
                raise UserError(
                    f"{path}: source.kind = 'text' would read it as plain text: expected {kind!r} for files of this "
                    f"ending; set source.kind to {kind!r}, or name files of plain text .txt"
                )

    def _load(self, number: int) -> Buffer:
        """The bytes of a file, in which records are spans. Raises BadRecordError where it cannot be read."""
        return utf8_of(self.paths[number])

    def _spans_of(self, data: Buffer) -> Spans:
        return text_spans(data, self.settings.documents)

    def _text(self, raw: bytes) -> str:
        """The text of a record from its bytes. Raises BadRecordError or UnicodeDecodeError without the place."""
        return raw.decode("utf-8")

    def _scan(self, number: int) -> Spans:
        """The documents of one file. An unreadable file is one bad record under "skip"."""
        try:
            data = self._buffer(number)
        except BadRecordError as error:
            if self.settings.on_bad_record == "error":
                raise
            self._unreadable[number] = str(error)
            return np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._sizes[number] = len(data)
        return self._spans_of(data)

    def _buffer(self, number: int) -> Buffer:
        """The bytes of a file; the last file stays open."""
        if self._open is None or self._open[0] != number:
            self._open = None  # frees a decompressed file before reading the next
            self._open = (number, self._load(number))
        return self._open[1]

    def _record(self, index: int) -> str:
        number = bisect_right(self._first_of_file, index) - 1
        if number in self._unreadable:
            raise BadRecordError(self._unreadable[number])
        starts, ends = self._spans[number]
        place = index - self._first_of_file[number]
        start, end = int(starts[place]), int(ends[place])
        raw = self._buffer(number)[start:end]
        try:
            return self._text(raw.removeprefix(UTF8_MARK) if start == 0 else raw)
        except UnicodeDecodeError as error:
            at = start + error.start
            bad = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        except BadRecordError as error:
            at, bad = start, str(error)
        where = self._place(number, at, place)
        raise BadRecordError(f'{where}: {bad}; fix it, or set source.on_bad_record = "skip"')

    def _place(self, number: int, offset: int, record: int) -> str:
        """The place of a byte of a record: the file and the line, counted from the last place where possible."""
        file, counted, newlines = self._newlines_before
        if file != number or counted > offset:
            counted, newlines = 0, 0
        newlines += self._buffer(number)[counted:offset].count(b"\n")
        self._newlines_before = (number, offset, newlines)
        return f"{self.paths[number]}:{newlines + 1}"


class JsonLines(FileDocuments):
    """The string field `settings.field` of each JSON object in .jsonl files, or of .json files: lines, or one list."""

    suffixes: tuple[str, ...] = (".jsonl",)
    otherwise: tuple[str, ...] = (".json",)

    def __init__(self, settings: SourceSettings) -> None:
        self._lists: set[int] = set()  # the files that hold one JSON list
        super().__init__(settings)

    def _check_paths(self) -> None:
        pass

    def _load(self, number: int) -> Buffer:
        """A file of JSON lines unchanged, a JSON list as lines."""
        data = utf8_of(self.paths[number])
        items = listed(data, self.paths[number]) if suffix_of(self.paths[number]) == ".json" else None
        if items is None:
            return data
        self._lists.add(number)
        return b"\n".join(json.dumps(item).encode() for item in items)

    def _spans_of(self, data: Buffer) -> Spans:
        return text_spans(data, "line")

    def _text(self, raw: bytes) -> str:
        record = json_object(raw)
        if isinstance(record, BadRecordError):
            raise record
        field = self.settings.field
        if field not in record:
            held = ", ".join(map(repr, record)) or "none"
            raise BadRecordError(f"no field {field!r}; it has {held}; choose by source.field")
        return checked_text(record[field], field)

    def _place(self, number: int, offset: int, record: int) -> str:
        if number in self._lists:
            return f"{self.paths[number]}: record {record + 1}"
        return super()._place(number, offset, record)


class CsvDocuments(JsonLines):
    """The column `settings.field` of CSV files with a header (RFC 4180)."""

    suffixes = (".csv",)
    otherwise: tuple[str, ...] = ()

    def __init__(self, settings: SourceSettings) -> None:
        self._places: dict[int, list[str]] = {}  # of the records of each file
        super().__init__(settings)

    def _load(self, number: int) -> Buffer:
        """The column of the file as JSON lines: strings, or objects with the error of a bad row."""
        path, field = self.paths[number], self.settings.field
        places, lines = [], []
        for place, row in csv_rows(utf8_of(path), path):
            if not isinstance(row, BadRecordError) and field not in row:
                raise UserError(f"{path}: no column source.field = {field!r}; {nearest(field, row)}")
            places.append(place)
            lines.append(json.dumps({"bad": str(row)} if isinstance(row, BadRecordError) else row[field]))
        self._places[number] = places
        return "\n".join(lines).encode()

    def _text(self, raw: bytes) -> str:
        value = json.loads(raw)
        if isinstance(value, dict):
            raise BadRecordError(value["bad"])
        return checked_text(value, self.settings.field)

    def _place(self, number: int, offset: int, record: int) -> str:
        return self._places[number][record]


def text_spans(data: Buffer, documents: str) -> Spans:
    """The byte spans of the documents in a file: the "file", its "line"s, or its "paragraph"s."""
    if documents == "file":
        return np.zeros(1, np.int64), np.full(1, len(data), np.int64)
    starts, ends, blank = _lines(data)
    first = last = ~blank
    if documents == "paragraph":
        after_blank = np.concatenate([[True], blank[:-1]])
        before_blank = np.concatenate([blank[1:], [True]])
        first, last = ~blank & after_blank, ~blank & before_blank
    ends_with_return = np.frombuffer(data, np.uint8)[np.maximum(ends - 1, 0)] == ord("\r") if len(data) else blank
    ends = ends - (ends_with_return & ~blank)
    return starts[first], ends[last]


def _lines(data: Buffer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every line: its first byte, the byte after its last (newline excluded), and whether it is only white space."""
    if not len(data):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
    bytes_ = np.frombuffer(data, np.uint8)
    blocks = range(0, len(bytes_), _BLOCK)
    newlines = np.concatenate([np.flatnonzero(bytes_[at : at + _BLOCK] == _NEWLINE) + at for at in blocks])
    starts = np.concatenate([[0], newlines + 1]).astype(np.int64)
    ends = np.concatenate([newlines, [len(bytes_)]]).astype(np.int64)
    if starts[-1] == len(bytes_):
        starts, ends = starts[:-1], ends[:-1]
    blank = starts == ends
    indented = np.flatnonzero(~blank & np.isin(bytes_[np.minimum(starts, len(bytes_) - 1)], _SPACES))
    for line in indented.tolist():
        blank[line] = data[starts[line] : ends[line]].isspace()
    return starts, ends, blank
