"""Documents in text files: whole files, lines, blank-line blocks, and the records of JSON lines, plain or gzipped.

A file is scanned once for its line ends and then read through a memory map. A gzipped file has no random access: it
is decompressed into memory, one file at a time, so many files of moderate size are better than one of many gigabytes.
A byte order mark at the start of a file is left out. Lines of nothing but white space separate and are no documents.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import mmap
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmjax.data.documents import BadRecordError, Documents, checked_text
from lmjax.errors import UserError, shortened
from lmjax.files import user_path
from lmjax.settings import SourceSettings

Spans = tuple[np.ndarray, np.ndarray]  # first byte of each document and the byte after its last, int64
Buffer = bytes | mmap.mmap

_NEWLINE = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 26  # bytes scanned at a time, which bounds the memory of the scan
_SAMPLES, _SAMPLE = 64, 1 << 18  # of a big file's checksum: how many parts are read, and their bytes
_SPACES = np.frombuffer(b" \t\r\v\f", np.uint8)


def list_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of `path`, sorted: itself, or those of a folder with one of `suffixes`, or those of a glob."""
    given = user_path(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [file for file in given.rglob("*") if file.name.endswith(tuple(suffixes)) and file.is_file()]
        expected = f"files that end in {', '.join(suffixes)} in this folder; or name others by a glob such as '*.md'"
    else:
        anchor = Path(given.anchor)
        files = [file for file in anchor.glob(str(given.relative_to(anchor))) if file.is_file()]
        expected = "a file, a folder or a glob that matches files; check the path, which is relative to where you are"
    if not files:
        raise UserError(f"source.path = {shortened(path)}: expected {expected}")
    return sorted(files)


def checksum(path: Path) -> str:
    """sha256 of the file's size and contents; of a file above 16 MiB, of 64 parts spread evenly over it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    starts: Sequence[int] = range(0, size, _SAMPLE)
    if len(starts) > _SAMPLES:
        starts = [sample * (size - _SAMPLE) // (_SAMPLES - 1) for sample in range(_SAMPLES)]
    with path.open("rb") as file:
        for at in starts:
            file.seek(at)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


class FileDocuments(Documents):
    """Documents of text files, sorted by path. `settings.documents` says what one document is."""

    suffixes: tuple[str, ...] = (".txt", ".txt.gz")

    def __init__(self, settings: SourceSettings) -> None:
        self.paths = list_files(settings.path, self.suffixes)
        self._open: tuple[int, Buffer] | None = None
        self._newlines_before = (-1, 0, 0)  # file, byte offset, newlines before it: where counting lines goes on
        self._unreadable: dict[int, str] = {}
        self._sizes = [0] * len(self.paths)
        self._spans: list[Spans] = []
        self.settings = settings
        for number in range(len(self.paths)):
            self._spans.append(self._scan(number))
        counts = [len(starts) for starts, _ in self._spans]
        self._first_of_file = np.concatenate([[0], np.cumsum(counts)]).tolist()
        super().__init__(settings, self._first_of_file[-1])

    @property
    def size_bytes(self) -> int:
        return sum(self._sizes)

    @property
    def contents(self) -> list[list[object]]:
        return [[path.name, checksum(path)] for path in self.paths]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}  # a memory map cannot travel to a worker process

    def _spans_of(self, data: Buffer) -> Spans:
        return text_spans(data, self.settings.documents)

    def _text(self, raw: bytes) -> str:
        """A record's text from its bytes; raises BadRecordError or UnicodeDecodeError, without the line."""
        return raw.decode("utf-8")

    def _scan(self, number: int) -> Spans:
        """The documents of one file. A file that cannot be read is one bad record, where those are skipped."""
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
        """The bytes of a file; the last one is kept open."""
        if self._open is None or self._open[0] != number:
            self._open = None  # frees a decompressed file before the next is read
            self._open = (number, _load(self.paths[number]))
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
            return self._text(raw.removeprefix(_BYTE_ORDER_MARK) if start == 0 else raw)
        except UnicodeDecodeError as error:
            line = self._line(number, start + error.start)
            bad = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        except BadRecordError as error:
            line, bad = self._line(number, start), str(error)
        raise BadRecordError(f'{self.paths[number]}:{line}: {bad}; mend it, or set source.on_bad_record = "skip"')

    def _line(self, number: int, offset: int) -> int:
        """The 1-based line of a byte; counting goes on from the last answer where it can."""
        file, counted, newlines = self._newlines_before
        if file != number or counted > offset:
            counted, newlines = 0, 0
        newlines += self._buffer(number)[counted:offset].count(b"\n")
        self._newlines_before = (number, offset, newlines)
        return newlines + 1


class JsonLines(FileDocuments):
    """The string field `settings.field` of each line's JSON object, in .jsonl and .jsonl.gz files."""

    suffixes = (".jsonl", ".jsonl.gz")

    def _spans_of(self, data: Buffer) -> Spans:
        return text_spans(data, "line")

    def _text(self, raw: bytes) -> str:
        try:
            record = json.loads(raw.decode("utf-8"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadRecordError(f"malformed JSON ({error})") from None
        if not isinstance(record, dict):
            raise BadRecordError(f"expected a JSON object, found {type(record).__name__}")
        field = self.settings.field
        if field not in record:
            raise BadRecordError(f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}")
        return checked_text(record[field], field)


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


def _load(path: Path) -> Buffer:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return file.read()
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadRecordError(f"{path}: a truncated or damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise BadRecordError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
