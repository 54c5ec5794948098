"""What the readers of labelled sets share: a record becomes an example, or the reason why it is none.

In: the records of a file with their places. Out: examples, and `BadExampleError`s in the place of records that are
none, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lmjax.data.documents import BadRecordError
from lmjax.data.labelled import BadExampleError
from lmjax.errors import shortened

Some = TypeVar("Some")
Records = Iterator[tuple[str, Some | BadRecordError]]  # each with its place, "file:line"


def examples(records: Records[Some], make: Callable[[Some, str], Any]) -> Iterator[Any]:
    """What `make` gives of each record and its place; the `BadExampleError` that it raises is yielded instead."""
    for where, record in records:
        try:
            if isinstance(record, BadRecordError):
                raise BadExampleError(where, str(record))
            yield make(record, where)
        except BadExampleError as error:
            yield error


def text(record: Mapping[str, Any], name: str, where: str) -> str:
    """The text of a field. Raises BadExampleError where there is none, or one that is no Unicode text."""
    return checked_text(_value(record, name, where), name, where)


def texts(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The texts of a field that is a list."""
    value = _value(record, name, where)
    if not isinstance(value, list) or not value:
        raise BadExampleError(where, f"{name} is no list of texts", shortened(value, 60))
    return tuple(checked_text(each, name, where) for each in value)


def checked_text(value: Any, name: str, where: str) -> str:
    """The value, a text that can be encoded. Raises BadExampleError for another one."""
    if not isinstance(value, str):
        raise BadExampleError(where, f"{name} is no text", shortened(value, 60))
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadExampleError(where, f"{name} holds a lone surrogate", shortened(value, 60))
    return value


def label(value: Any, where: str, known: Sequence[str] = ()) -> str:
    """A class: a text, a whole number or a truth value, as text. Raises BadExampleError for one that is not known."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    named = str(value) if isinstance(value, str | int) else ""
    if not named or (known and named not in known):
        expected = f", expected {' or '.join(map(repr, known))}" if known else ""
        raise BadExampleError(where, f"an unknown label{expected}", shortened(value, 60))
    return checked_text(named, "the label", where)


def score(value: Any, where: str, lowest: float = -math.inf, highest: float = math.inf) -> float:
    """A number, which may be written as text. Raises BadExampleError for another value, or one outside the bounds."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and lowest <= number <= highest):
        bounds = f", expected {lowest:g} to {highest:g}" if math.isfinite(highest) else ", expected a finite number"
        raise BadExampleError(where, f"a score that is none{bounds}", shortened(value, 60))
    return number


def place(value: Any, count: int, where: str, first: int = 0) -> int:
    """The number of the right one of `count` options, from 0; in the file they count from `first`."""
    known = [str(number) for number in range(first, first + count)]
    return int(label(value, where, known)) - first


def _value(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise BadExampleError(where, f"no field {name!r}", shortened(list(record), 100))
    return record[name]
