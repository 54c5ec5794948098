"""Reading and writing whole files, for the whole project: text, JSON of a known form, names that come out of files.

And the terminal's streams, which take any text.

Every reader raises UserError with the path (and line) for a file that is absent, forbidden, a folder, not UTF-8 or
not JSON. A file is written whole or not at all.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TextIO

from lmjax.errors import UserError, clear_disk_errors, is_bucket, shortened
from lmjax.fields import described, expected, fits

ESCAPED = "lmjax-escaped"  # how a codec writes what it lacks: by escapes that JSON reads, too
MAX_NAME_BYTES = 255  # of one file name, on the file systems in use


class MalformedJsonError(ValueError):
    """Text that is not JSON, too deep, or with a number too long to read. `line` is 1-based, or None."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises UserError naming the path where it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> UserError:
    """The error for a file that cannot be opened or read."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{path}: cannot be read ({reason}); check the path and its permissions")


def read_text(path: Path) -> str:
    """The file as UTF-8, a leading byte order mark dropped. Raises UserError naming path and line where it is not."""
    return decode_text(read_bytes(path), path)


def decode_text(data: bytes, where: object) -> str:
    """`data` as UTF-8, a leading byte order mark dropped. Raises UserError naming `where` and the line."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}:{line}: byte {data[error.start]:#04x} is not UTF-8; expected UTF-8 text; "
            "restore the file, or convert it"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """The JSON value. Raises MalformedJsonError for everything that Python's reader raises, and nothing else.

    That is: what is not JSON, nesting too deep, bytes that are not UTF-8, a whole number above 4,300 digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedJsonError(error.msg, error.lineno) from None
    except RecursionError:
        raise MalformedJsonError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise MalformedJsonError(f"byte {error.object[error.start]:#04x} is not UTF-8") from None
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise MalformedJsonError(str(error).split(";")[0]) from None


def decode_json(text: str | bytes, where: object, form: Any = Any, fix: str = "restore the file") -> Any:
    """The JSON value in `text`, checked to be of the type `form`. Raises UserError naming `where`, line or field."""
    try:
        value = parse_json(text)
    except MalformedJsonError as error:
        place = f"{where}:{error.line}" if error.line else where
        raise UserError(f"{place}: expected JSON ({error}); {fix}") from error
    return check_form(value, form, where, fix=fix)


def read_json(path: Path, form: Any = Any, fix: str = "restore the file") -> Any:
    """The JSON value in the file, checked to be of the type `form` (see `check_form`). Raises UserError."""
    return decode_json(decode_text(read_bytes(path), path), path, form, fix)


def read_json_if_there(path: Path, form: Any = Any, fix: str = "restore the file") -> Any:
    """As `read_json`; None where there is no such file."""
    return read_json(path, form, fix) if path.exists() else None


def check_form(value: Any, form: Any, where: object, field: str = "", fix: str = "restore the file") -> Any:
    """`value`, of the type `form`: list[str], dict[str, float], a Literal, unions, or a TypedDict of named fields.

    A TypedDict's own fields must be there where they are required; others are let through. A whole number is also a
    number. Raises UserError naming `where` and the first field that does not fit.
    """
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if typing.is_typeddict(form) and isinstance(value, dict):
        for name, kind in typing.get_type_hints(form).items():
            own = f"{field}.{name}".lstrip(".")
            if name in value:
                check_form(value[name], kind, where, own, fix)
            elif name in form.__required_keys__:
                raise UserError(f"{where}: no field {own!r}; expected {described(kind)}; {fix}")
        return value
    if origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            check_form(item, arguments[0], where, f"{field}[{number}]", fix)
        return value
    if origin is dict and isinstance(value, dict):
        for name, item in value.items():
            check_form(item, arguments[1], where, f"{field}.{name[:60]}".lstrip("."), fix)
        return value
    if not fits(form, value):
        what = f"{field} = {shortened(value)}" if field else f"found {shortened(value)}"
        raise UserError(f"{where}: {what}: expected {expected(form, value)}; {fix}")
    return value


def user_path(path: str | Path, field: str = "") -> Path:
    """A path that a person gives, a leading `~` or `~user` being a home folder; `field` names it in errors.

    Raises UserError where there is no such user, and for a name that no file can have.
    """
    text = str(path)
    named = f"{field} = {shortened(text)}" if field else text if len(text) < 200 else shortened(text)
    if "\0" in text or any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in text.split("/")):
        raise UserError(f"{named}: expected names of at most {MAX_NAME_BYTES} bytes, without NUL; shorten it")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = text.split("/")[0][1:]
        raise UserError(
            f"{named}: there is no user {user!r}, or no home folder; write ./{text} for a folder"
        ) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all, also after a power cut: flushed to the disk, then renamed."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    if is_bucket(path):  # an object is there whole or not at all
        path.write_bytes(data)
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write the same file at this moment
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def new_file(path: Path | None) -> Iterator[TextIO | None]:
    """A file that `--out` names, for text that is written piece by piece; it is removed where that does not end well.

    None is no file. Raises UserError where something is there already, and where the file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        fix = "name a new file" if isinstance(error, FileExistsError) else "name a file in another folder"
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); {fix}") from error
    try:
        with clear_disk_errors(path), file:
            yield file
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def write_json_lines(file: TextIO | None, records: Iterable[Any], default: Callable[[Any], Any] | None = None) -> None:
    """A line of JSON for each record; nothing where there is no file. `default` makes plain what JSON does not know."""
    if file is not None:
        file.writelines(json.dumps(record, ensure_ascii=False, default=default) + "\n" for record in records)


def is_safe_name(name: object) -> bool:
    """Whether this is the plain name of one file or folder, which cannot lead out of the folder it is joined to."""
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or len(name.encode(errors="replace")) > MAX_NAME_BYTES
    ):
        return False
    return name.isprintable() and not set(name) & set("/\\:") and not name.startswith("~")


def safe_name(name: object, where: object) -> str:
    """`name`, which a file at `where` gives to a file or folder. Raises UserError unless it is one plain, safe name."""
    if not is_safe_name(name):
        raise UserError(
            f"{where}: {shortened(name)} names a file: expected one plain name in the same folder, "
            "without '/', '\\' or ':'; nothing outside the folder is read or written"
        )
    assert isinstance(name, str)
    return name


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is. Python's bytecode knows a file by its second and size, and misses a quick edit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def run_file(path: Path, name: str) -> ModuleType:
    """Runs a user's Python file, with the user's rights, as the module `name`; no bytecode is read or written.

    Raises what the file raises, and OSError where it cannot be read.
    """
    loader = _SourceLoader(name, str(path.absolute()))
    spec = importlib.util.spec_from_file_location(name, loader.path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def cache_folder() -> Path:
    """Where what can be made again is kept: lmjax in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "lmjax"


def sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal, read in pieces. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def open_streams() -> None:
    """Lets standard output and error take any text, and standard input any bytes, whatever the terminal's encoding.

    What the encoding lacks is written as an escape that JSON reads, too; ASCII input is read as UTF-8, and bytes that
    are not UTF-8 become lone surrogates, which tokenizers refuse by name. What is written to a stream that is closed is
    lost.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)
    if isinstance(sys.stdin, io.TextIOWrapper):
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="surrogateescape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPED, _escaped)
