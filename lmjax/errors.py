"""The errors that a user can cause and fix. The command line prints them without a traceback and exits 2."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_MESSAGE = 2_000  # characters


class UserError(Exception):
    """A mistake in a recipe, a file or a command: the message says what, where, what was expected and what to do.

    Long values are cut in the middle: see `readable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(readable(str(message)))


class FieldError(UserError):
    """A recipe field whose value does not fit. `rest` is what the message says after the field's path.

    The path begins at the settings that were checked, whose class is `owner`, until `within` gives their place.
    """

    def __init__(self, field: str, rest: str, owner: str = "") -> None:
        super().__init__(f"{joined(owner, field)}{rest}")
        self.field, self.rest, self.owner = field, rest, owner

    def within(self, path: str) -> FieldError:
        """The same error of settings whose place in a recipe is `path`; "" is the recipe itself."""
        return FieldError(joined(path, self.field), self.rest)


class ArgumentError(UserError):
    """An argument of a recipe's function that does not fit: the message names its option, and no line of the file."""


def joined(path: str, field: str) -> str:
    """The path of a field of the settings at `path`; either may be empty."""
    return f"{path}.{field}" if path and field else path or field


class PeerLostError(Exception):
    """Another process of the run has died: nothing that needs all of them works any more, not even an orderly end."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the names in `known` that begin with `name`, or else the closest one, or else all of them."""
    known = list(known)
    close = [other for other in known if name and other.startswith(name)]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "known: " + ", ".join(known)


def nearest_sizes(size: int, fitting: Iterable[int]) -> str:
    """Of the sizes that fit, the next below and the next above."""
    fitting = list(fitting)
    below = max((n for n in fitting if n < size), default=None)
    above = min((n for n in fitting if n > size), default=None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def shortened(value: object, most: int = 200) -> str:
    """The value as Python writes it, cut in the middle where that has more than `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a whole number of thousands of digits"
    return text if len(text) <= most else _cut(text, most)


def _cut(text: str, most: int) -> str:
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}...[{len(text) - head - tail:,} characters]...{text[-tail:]}"


def readable(message: str) -> str:
    """The message, in which words of 300 characters or more are cut in the middle, as is a message that is too long."""
    message = re.sub(r"\S{300,}", lambda word: shortened(word[0])[1:-1], message)
    return message if len(message) <= LONGEST_MESSAGE else _cut(message, LONGEST_MESSAGE - 100)


def is_bucket(path: object) -> bool:
    """Whether this is a path on a bucket (lmjax/bucket.py); `Path` makes one slash of two."""
    return str(path).startswith("gs:/")


def text_of(error: BaseException) -> str:
    """What the error says, also where a class of its author's fails to say it."""
    try:
        return str(error)
    except Exception as failed:
        return f"its own text cannot be made: {type(failed).__name__}"


def field_error(field: str, value: object, expected: str, fix: str) -> FieldError:
    """The error of a recipe field: its value, what was expected and a likely fix."""
    return FieldError(field, f" = {shortened(value)}: expected {expected}; {fix}")


def require(condition: bool, field: str, value: object, expected: str, fix: str) -> None:
    """Raises the field's error unless `condition`."""
    if not condition:
        raise field_error(field, value, expected, fix)


def means_full_disk(error: BaseException | str) -> bool:
    """Whether this is a full disk or a used-up quota, whichever layer noticed it."""
    code = getattr(error, "errno", None)
    said = ("No space left", "ENOSPC", "Disk quota exceeded", "File too large")
    return code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(words in str(error) for words in said)


_OF_STORAGE = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def storage_reason(error: BaseException | str, folder: Path) -> str | None:
    """What the storage of `folder` said, whichever layer noticed it: no permission, read-only, gone, broken.

    None where this is another error: of another file, or none of the storage's.
    """
    if is_bucket(folder):
        return _bucket_reason(error)
    if isinstance(error, OSError):
        name = error.filename if isinstance(error.filename, str) else ""
        here, there = folder.absolute(), Path(name).absolute()
        if name and (there.is_relative_to(here) or here.is_relative_to(there)):
            return f"{error.strerror}: {name}"
        return error.strerror if not name and error.errno in _OF_STORAGE else None
    text = str(error)
    if str(folder.absolute()) not in text:
        return None
    status = re.search(
        r"\[OS error \d+: (?:E[A-Z]+ )?([^\]]+)\]|\b([A-Z]{3,}_[A-Z_]+): ", text
    )  # as tensorstore writes it
    return status and (status.group(1) or status.group(2).replace("_", " ").lower())


def _bucket_reason(error: BaseException | str) -> str | None:
    """What the layers below a bucket's paths said."""
    layer = type(error).__module__.partition(".")[0]
    theirs = isinstance(error, OSError) or layer in ("gcsfs", "google", "aiohttp", "requests", "urllib3")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    absent = "not there: " if isinstance(error, FileNotFoundError) else ""
    return absent + " ".join(lines[:2])[:300] if theirs or "gs://" in str(error) else None


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the storage of `folder` refuses into a UserError; the older checkpoints are intact."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if means_full_disk(error):
            raise UserError(f"{folder}: the disk is full; free some space and run the same command again") from error
        reason = storage_reason(error, folder)
        if reason is None:
            raise
        fix = "check the folder, its permissions and its disk, and run the same command again"
        if is_bucket(folder):
            fix = (
                "check the bucket's name, the login (gcloud auth application-default login) and its roles (Storage "
                "Object User and Storage Legacy Bucket Reader), and run the same command again"
            )
        raise UserError(f"{folder}: cannot be read or written ({reason}); {fix}") from error
