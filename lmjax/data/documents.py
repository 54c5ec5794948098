"""The base class of sources of documents: random access, a selected part, and a count of bad records.

In: a SourceSettings. Out: documents as str, by index. A record that cannot be read raises BadRecordError, which names
file and line; `read` and iteration follow `on_bad_record`.
"""

from __future__ import annotations

import abc
import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from lmjax.errors import UserError
from lmjax.settings import SourceSettings


class Source(Protocol):
    """Documents by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


class BadRecordError(UserError):
    """A record cannot be read; the message names its file and line."""


class Documents(abc.ABC):
    """A source of documents restricted to `settings.begin .. settings.end`.

    `len` counts the records, bad ones included. `source[i]` raises BadRecordError for a bad one; `read` and iteration
    skip it where `on_bad_record="skip"`. `skipped` is the count of the last iteration; `left_out` lists the
    kinds of files of the path that are not read, with their counts, and `paths` the files that are.
    """

    left_out: Sequence[str] = ()
    paths: Sequence[Path] = ()

    def __init__(self, settings: SourceSettings, total: int) -> None:
        """`total`: the records of the source before selection. Raises UserError where the selected part is empty."""
        self.settings = settings
        self.skipped = 0
        self._total = total
        if total == 0:
            raise UserError(f"{self.name}: holds no documents; give a source with text")
        self._single = total == 1
        self._first, self._last = 0, 1
        if not self._single:
            self._first, self._last = round(total * settings.begin), round(total * settings.end)
        if self._first == self._last:
            raise UserError(
                f"{self.name}: source.begin, source.end = {settings.begin}, {settings.end} select none of its "
                f"{total} documents; widen them"
            )

    @property
    def name(self) -> str:
        """The name of this source in messages."""
        return f"source {self.settings.kind} {self.settings.path or self.settings.split}"

    @property
    @abc.abstractmethod
    def size_bytes(self) -> int:
        """An estimate of the text of the source in bytes, from which its reader chooses a method."""

    @property
    def selected_bytes(self) -> int:
        """Of these, those of the selected part, as if all records were equally long."""
        return self.size_bytes * len(self) // self._total

    @property
    @abc.abstractmethod
    def contents(self) -> list[list[object]]:
        """The identity of the contents: a list per file, with its name and a checksum."""

    @abc.abstractmethod
    def _record(self, index: int) -> str:
        """The text of record `index` of the source before selection; raises BadRecordError."""

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: document {index} of {len(self)}")
        text = self._record(self._first + index)
        return self._cut(text) if self._single else text

    def _cut(self, text: str) -> str:
        """The selected part of the only document, cut at line ends; adjacent parts neither overlap nor leave a gap."""
        first, last = (_line_end(text, part) for part in (self.settings.begin, self.settings.end))
        if first == last:
            raise UserError(
                f"{self.name}: source.begin, source.end = {self.settings.begin}, {self.settings.end} select no line "
                f"of its only document of {len(text)} characters; widen them"
            )
        return text[first:last]

    def read(self, first: int, last: int) -> tuple[list[str], list[str]]:
        """Documents first to last - 1, and the messages of those skipped under `on_bad_record="skip"`."""
        texts, skipped = [], []
        for index in range(first, last):
            try:
                texts.append(self[index])
            except BadRecordError as error:
                if self.settings.on_bad_record == "error":
                    raise
                skipped.append(str(error))
        return texts, skipped

    def __iter__(self) -> Iterator[str]:
        self.skipped = 0
        for index in range(len(self)):
            texts, skipped = self.read(index, index + 1)
            self.skipped += len(skipped)
            yield from texts

    @cached_property
    def identity(self) -> dict[str, object]:
        """What shards made of this source are known by: how it is read, and its contents."""
        settings = self.settings
        how = {name: getattr(settings, name) for name in ("kind", "split", "field", "documents", "begin", "end")}
        listing = repr(self.contents).encode()
        return how | {"on_bad_record": settings.on_bad_record, "contents": hashlib.sha256(listing).hexdigest()}


def share_of(source: Documents, share: int, shares: int) -> Documents | None:
    """The share-th of `shares` equal parts of a source's documents, from 1, in order.

    A source of fewer documents than shares is not divided: the first share has all of it, and the others have None. The
    identity of a part says which one it is of which source.
    """
    if len(source) < shares and share > 1:
        return None
    part = copy.copy(source)
    if len(source) >= shares:
        part._first, part._last = (source._first + len(source) * at // shares for at in (share - 1, share))
    part.__dict__["identity"] = source.identity | {"share": [share, shares]}
    return part


class MemoryDocuments(Documents):
    """Documents in memory."""

    def __init__(self, texts: Sequence[str], settings: SourceSettings | None = None) -> None:
        self._texts = list(texts)
        super().__init__(settings or SourceSettings(), len(self._texts))

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self._texts))

    @property
    def contents(self) -> list[list[object]]:
        digest = hashlib.sha256()
        for text in self._texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(raw)}:".encode() + raw)
        return [["texts", digest.hexdigest()]]

    def _record(self, index: int) -> str:
        return self._texts[index]


def checked_text(value: object, field: str) -> str:
    """The value of a field as text. Raises BadRecordError where it is no text, or no valid Unicode."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if not isinstance(value, str):
            raise BadRecordError(f"field {field!r} is {type(value).__name__}, expected a string")
        value.encode("utf-8")
    except UnicodeError as error:
        raise BadRecordError(f"field {field!r} is not valid Unicode ({error})") from None
    return value


def _line_end(text: str, part: float) -> int:
    """The first line end at or after this part of the text; 0 and 1 are its ends."""
    if part in (0.0, 1.0):
        return int(part) * len(text)
    return text.find("\n", round(part * len(text))) + 1 or len(text)
