"""Finds and opens files of data: paths and globs, decompression by suffix, encodings by byte order mark.

In: a path. Out: sorted files with a list of what is left out, and the bytes of a file as UTF-8. A file that cannot be
read raises BadRecordError with its path; the caller decides whether to skip it.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import lzma
import mmap
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lmjax.data.documents import BadRecordError
from lmjax.errors import FieldError, UserError, shortened
from lmjax.files import unreadable, user_path
from lmjax.kinds import COMPRESSIONS, plain_name, suffix_of

__all__ = [
    "Buffer",
    "Files",
    "as_utf8",
    "decompressed",
    "find_files",
    "list_files",
    "plain_name",
    "suffix_of",
    "utf8_of",
]

Buffer = bytes | mmap.mmap

UTF8_MARK = b"\xef\xbb\xbf"
_BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (UTF8_MARK, "utf-8"),
)


class Files(NamedTuple):
    """The files of a path, sorted, and the kinds of files that are left out, as text with counts."""

    paths: list[Path]
    left_out: list[str]


def list_files(path: str, suffixes: Sequence[str]) -> list[Path]:
    """The paths of `find_files` alone."""
    return find_files(path, suffixes).paths


def find_files(path: str, suffixes: Sequence[str], otherwise: Sequence[str] = ()) -> Files:
    """The files of `path`: itself, those of a folder that have one of `suffixes`, or those that a glob matches.

    Suffixes are in lower case, without a compression; a folder without any of `suffixes` is searched for `otherwise`.
    The search follows subfolders and links, and finds each file once. Hidden files and folders (".name") are left out
    unless the path names them.

    Raises:
      UserError: there is no file, a folder cannot be read, or a link is broken.
    """
    root = user_path(path, "source.path")
    try:
        kind = "folder" if root.is_dir() else "file" if root.is_file() else "other" if root.exists() else ""
        if not kind and root.is_symlink():
            raise _broken(root)
    except (OSError, ValueError) as error:
        raise FieldError("path", f" = {shortened(path)}: cannot be read ({error}); check the path", "source") from error
    left_out: Counter[str] = Counter()
    if kind == "file":
        return Files([root], [])
    if kind == "folder":
        everything = list(_walk(root, (), left_out, lambda link: _ends(link, (*suffixes, *otherwise, ""))))
        matching = [file for file in everything if _ends(file, suffixes)]
        matching = matching or [file for file in everything if _ends(file, otherwise)]
        left_out["of another ending"] += len(everything) - len(matching)
        endings = ", ".join((*suffixes, *otherwise))
        expected = f"files that end in {endings} in this folder; or name others by a glob such as '*.md'"
    elif kind:
        matching, expected = [], "a regular file, a folder or a glob, found something else; copy the data to a file"
    else:
        matching = list(_glob(root, left_out))
        expected = "a file, a folder or a glob that matches files; check the path, which is relative to where you are"
    files = _once(sorted(matching), left_out)
    words = [f"{count:,} {what}" for what, count in left_out.items() if count]
    if not files:
        left = f" ({'; '.join(words)})" * bool(words)
        raise FieldError("path", f" = {shortened(path)}: expected {expected}{left}", "source")
    return Files(files, words)


def _ends(file: Path, suffixes: Sequence[str]) -> bool:
    return suffix_of(file) in suffixes


def _walk(root: Path, named: Sequence[str], left_out: Counter[str], wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """The files below a folder, each folder once: real ones first, then those behind links.

    named: patterns of hidden names that are read. wanted: whether a broken link is an error.
    """
    folders: list[Path] = [root]
    linked: list[Path] = []
    seen = set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)
        try:
            identity = folder.stat()
            if (identity.st_dev, identity.st_ino) in seen:
                continue  # already read, under another name
            seen.add((identity.st_dev, identity.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(folder, error) from error
        for entry in entries:
            path = folder / entry.name
            place = path if entry.is_symlink() else entry  # a path knows a link that leads back to itself as broken
            if entry.name.startswith(".") and not any(fnmatch.fnmatchcase(entry.name, one) for one in named):
                left_out["hidden"] += 1
            elif place.is_dir():
                (linked if entry.is_symlink() else folders).append(path)
            elif place.is_file():
                yield path
            elif path.exists():
                left_out["devices, pipes or sockets"] += 1
            elif wanted(path):
                raise _broken(path)
            else:
                left_out["broken links of another ending"] += 1


def _broken(link: Path) -> UserError:
    return UserError(f"{link}: a link to {str(link.readlink())!r}, which is missing; restore it, or delete the link")


def _glob(pattern: Path, left_out: Counter[str]) -> Iterator[Path]:
    """The files that match. Leading parts that exist are plain names, so that brackets in them are no pattern."""
    base, parts = Path(pattern.anchor), list(pattern.parts[1:] if pattern.anchor else pattern.parts)
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    level = [base]
    while parts and parts[0] != "**":
        part = parts.pop(0)
        level = [child for folder in level for child in _children(folder, part, left_out)]
        if parts:
            level = [path for path in level if path.is_dir()]
    for path in level:
        if parts:
            yield from _below(path, parts, left_out)
        elif path.is_file():
            yield path
        elif path.is_dir():
            left_out["folders (end the glob in /** to read them)"] += 1
        elif path.exists():
            left_out["devices, pipes or sockets"] += 1
        else:
            raise _broken(path)


def _below(folder: Path, parts: Sequence[str], left_out: Counter[str]) -> Iterator[Path]:
    """The files at any depth below a folder that match the parts of a glob from a "**" on."""

    def matches(path: Path) -> bool:
        return _matches(path.relative_to(folder).parts, parts)

    named = [part for part in parts if part.startswith(".")]
    yield from filter(matches, _walk(folder, named, left_out, matches))


def _children(folder: Path, pattern: str, left_out: Counter[str]) -> Iterator[Path]:
    """The entries of a folder that match one part of a glob; hidden ones only where the part begins with a dot."""
    if not set(pattern) & set("*?["):
        if os.path.lexists(folder / pattern):
            yield folder / pattern
        return
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for name in fnmatch.filter(names, pattern):
        if name.startswith(".") and not pattern.startswith("."):
            left_out["hidden"] += 1
        else:
            yield folder / name


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _once(paths: Sequence[Path], left_out: Counter[str]) -> list[Path]:
    """The paths without links to files that are also in the list."""
    files: dict[str, Path] = {}
    for path in sorted(paths, key=os.path.islink):  # of a file and a link to it, the file
        if files.setdefault(os.path.realpath(path), path) is not path:
            left_out["links to files read already"] += 1
    return sorted(files.values())


class _DamagedError(Exception):
    """Compressed data are damaged or incomplete."""


def decompressed(path: Path) -> Buffer:
    """The bytes of a file: a memory map, or the decompressed bytes where its suffix names a compression.

    Raises BadRecordError where the file cannot be read or is damaged; an empty file is empty bytes.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""
            if suffix in COMPRESSIONS:
                return _DECOMPRESS[suffix](file.read())
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _DamagedError) as error:
        kind = {".gz": "gzip"}.get(suffix, suffix[1:])
        raise BadRecordError(f"{path}: a truncated or damaged {kind} file ({error}); fetch it again") from None
    except (OSError, ValueError) as error:
        raise BadRecordError(str(unreadable(path, error))) from None


def _streams(data: bytes, suffix: str) -> bytes:
    """All streams of a .bz2 or .xz file. Unlike the library's function, data after them are an error."""
    parts = []
    while data:
        decompressor = bz2.BZ2Decompressor() if suffix == ".bz2" else lzma.LZMADecompressor(lzma.FORMAT_AUTO)
        try:
            parts.append(decompressor.decompress(data))
        except (OSError, ValueError) as error:
            raise _DamagedError(str(error)) from None
        if not decompressor.eof:
            raise _DamagedError("it ends too early")
        data = decompressor.unused_data
        if suffix == ".xz" and len(data) % 4 == 0 and not data.strip(b"\0"):
            break  # padding, which the format allows
    return b"".join(parts)


def _zstd(data: bytes) -> bytes:
    import pyarrow  # its import takes half a second

    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
            return stream.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise _DamagedError(str(error)) from None


_DECOMPRESS = {
    ".gz": gzip.decompress,
    ".bz2": lambda data: _streams(data, ".bz2"),
    ".xz": lambda data: _streams(data, ".xz"),
    ".zst": _zstd,
}


def as_utf8(data: Buffer, where: object) -> Buffer:
    """`data` in UTF-8: itself, or decoded by its byte order mark. UTF-8 is not validated.

    Raises BadRecordError where UTF-16 or UTF-32 is damaged, or has no byte order mark.
    """
    mark, encoding = next(((mark, name) for mark, name in _BYTE_ORDER_MARKS if data[:4].startswith(mark)), (b"", ""))
    if encoding == "utf-8":
        return data  # its readers drop the mark, so that the memory map is not copied
    if encoding:
        try:
            return data[len(mark) :].decode(encoding).encode("utf-8")
        except UnicodeError as error:
            raise BadRecordError(f"{where}: damaged {encoding.upper()} text ({error}); fetch it again") from None
    head = data[:64]
    even, odd = head[0::2], head[1::2]
    if len(head) >= 8 and (not even.strip(b"\0") or not odd.strip(b"\0")) and head.strip(b"\0"):
        raise BadRecordError(f"{where}: looks like UTF-16 or UTF-32 without a byte order mark; convert it to UTF-8")
    return data


def utf8_of(path: Path) -> Buffer:
    """The contents of a text file in UTF-8, decompressed. Raises BadRecordError with its path."""
    return as_utf8(decompressed(path), path)
