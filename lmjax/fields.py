"""Checks the values of a settings object: the declared type and bounds of each field.

A settings object checks itself when it is made. A mistake is a FieldError that names the field below the object, its
value, what was expected and a likely fix; whoever knows the object's place in a recipe adds the path (`within`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lmjax.errors import FieldError, field_error, joined, nearest, nearest_sizes, require

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


class Settings:
    """The base of the frozen dataclasses of a recipe: each checks itself when it is made."""

    def __post_init__(self) -> None:
        if _unchecked.get():
            return
        try:
            check_fields(self)
            self.check()
        except FieldError as error:
            raise error if error.owner else FieldError(error.field, error.rest, self.own_name()) from None

    def check(self) -> None:
        """Raises FieldError where fields do not go together; their types and bounds are checked before."""

    @classmethod
    def own_name(cls) -> str:
        """What comes before a field's name in a message about settings whose place in a recipe is not known."""
        return cls.__name__


@dataclass(frozen=True)
class Bound:
    """The numbers that a field may have, as metadata of its type: `Annotated[int, at_least(2)]`. None passes."""

    holds: Callable[[Any], bool]
    expected: str
    fix: str = ""  # "" is the field's default


def above(low: float, fix: str = "") -> Bound:
    return Bound(lambda value: value > low, f"a number above {low}", fix)


def at_least(low: float, fix: str = "") -> Bound:
    return Bound(lambda value: value >= low, f"{low} or more", fix)


PositiveInt = Annotated[int, above(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeInt = Annotated[int, at_least(0, "use 0 for none")]
NonNegativeFloat = Annotated[float, at_least(0, "use 0 for none")]
Fraction = Annotated[float, Bound(lambda value: 0 <= value < 1, "a fraction in [0, 1)")]
ClosedFraction = Annotated[float, Bound(lambda value: 0 <= value <= 1, "a fraction in [0, 1]")]
Seed = Annotated[int, Bound(lambda value: 0 <= value < 2**31, "a whole number from 0 to 2^31 - 1")]
OpenFraction = Annotated[float, Bound(lambda value: 0 < value < 1, "a fraction in (0, 1)")]


@contextmanager
def placed(path: str) -> Iterator[None]:
    """Gives an error of settings that are made or read here their place in a recipe."""
    try:
        yield
    except FieldError as error:
        raise error.within(path) from None


@contextmanager
def unchecked() -> Iterator[None]:
    """Settings that are made here do not check themselves: `checked` does, which knows their places."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def checked(value: Any, path: str = "") -> Any:
    """Settings at `path` of a recipe, made anew from checked parts. Raises FieldError with the field's full path."""
    if isinstance(value, tuple):
        return tuple(checked(item, f"{path}[{number}]") for number, item in enumerate(value))
    if not isinstance(value, Settings):
        return value
    kind: Any = type(value)
    fields = {name: checked(getattr(value, name), joined(path, name)) for name in field_types(kind)}
    with placed(path):
        return kind(**fields)


def check_fields(settings: Any) -> None:
    """Raises FieldError at the first field whose value is not of the type, or in the bounds, that the field declares.

    A whole number, of at most 64 bits, is also a number; True is neither. Numbers are finite.
    """
    bounds = _bounds(settings.__class__)
    for name, kind in field_types(settings.__class__).items():
        value = getattr(settings, name)
        if not fits(kind, value):
            raise field_error(name, value, expected(kind, value), _fix(kind, value, settings, name))
        bound = bounds.get(name)
        if bound is not None and value is not None:
            require(bound.holds(value), name, value, bound.expected, bound.fix or _default(settings, name))


def check_name(name: str) -> None:
    """Raises UserError unless the name can be that of a folder."""
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[:1] != "."
    fits = plain and len(name.encode()) <= 200
    require(fits, "name", name, "letters, digits, '-', '_' and '.', at most 200", "it names a folder")


def require_local(field: str, path: object, *, bucket: bool = False) -> None:
    """Raises UserError where the path is a URL: lmjax reads and writes files of this machine, or mounted on it alone.

    `Path` makes one slash of two, so that one is enough to know it by. None passes, and with `bucket` a gs:// URL.
    """
    scheme, colon, rest = str(path or "").partition(":")
    if not colon or not rest.startswith("/") or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return
    if bucket and scheme == "gs":
        return
    url = f"{scheme}://{rest.lstrip('/')}"
    mounted = "mount the bucket (gcsfuse --implicit-dirs BUCKET DIR; tpu_setup/bootstrap.sh does it)"
    fix = mounted if scheme.lower() in ("gs", "gcs") else "mount it, or copy the files here"
    raise field_error(field, url, "a path of this machine, lmjax opens no URLs", f"{fix}, and name that folder")


def check_weights(field: str, sources: Sequence[Any]) -> None:
    """Raises UserError where some of the sources, which are mixed, have a weight and others have none."""
    without = [number for number, source in enumerate(sources) if source.weight is None]
    mixed = 0 < len(without) < len(sources)
    fix = "give every source a weight, or none: then each counts by its tokens"
    place = f"{field}[{without[0]}].weight" if mixed else field
    require(not mixed, place, None, "a number above 0, because other sources have one", fix)


def check_divides(field: str, parts: int, wholes: dict[str, int]) -> None:
    """Raises UserError naming the nearest that fit where one of the sizes, by field, is not cut evenly in `parts`."""
    common = math.gcd(*wholes.values())
    for name, whole in wholes.items():
        if whole % parts:
            fix = f"use {field} = {nearest_sizes(parts, (n for n in range(1, common + 1) if common % n == 0))}"
            if len(wholes) == 1:
                fix += f", or {name} = {nearest_sizes(whole, range(parts, whole + parts + 1, parts))}"
            raise field_error(field, parts, f"a divisor of {name} = {whole}", fix)


@functools.cache
def field_types(settings: Any) -> dict[str, Any]:
    """The declared type of each field of a dataclass."""
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


@functools.cache
def _bounds(settings: Any) -> dict[str, Bound]:
    hints = typing.get_type_hints(settings, include_extras=True)
    parts = ((name, part) for name, hint in hints.items() for part in (hint, *typing.get_args(hint)))
    return {name: data for name, part in parts for data in getattr(part, "__metadata__", ()) if isinstance(data, Bound)}


def described(kind: Any) -> str:
    """A declared type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a tuple, each entry {described(arguments[0])}"
    if origin is tuple:
        return f"a tuple of {len(arguments)}: {', '.join(map(described, arguments))}"
    if origin is list or kind is list:
        return "a list" + (f", each entry {described(arguments[0])}" if arguments else "")
    if origin is dict or kind is dict or typing.is_typeddict(kind):
        return "an object" + (f", each value {described(arguments[1])}" if arguments else "")
    words = {Any: "a value", int: "a whole number", float: "a finite number", str: "a string", bool: "True or False"}
    return words.get(kind, "None" if kind is type(None) else getattr(kind, "__name__", str(kind)))


def expected(kind: Any, value: Any) -> str:
    """A declared type in words, for a value that is not of it."""
    return described(kind) + (", of at most 64 bits" if type(value) is int and value.bit_length() > 63 else "")


def fits(kind: Any, value: Any) -> bool:
    """Whether the value is of the declared type, its entries included. Whole numbers have at most 64 bits."""
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(argument, value) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        if type(value) is not tuple:
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(kinds) == len(value) and all(map(fits, kinds, value))
    if origin in (list, dict):
        if type(value) is not origin:
            return False
        return all(fits(arguments[-1], item) for item in (value.values() if origin is dict else value))
    if kind is int:
        return type(value) is int and value.bit_length() < 64
    if kind is float:
        return type(value) in (int, float) and _is_finite(value)
    return type(value) is kind or (dataclasses.is_dataclass(value) and isinstance(value, kind))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _fix(kind: Any, value: Any, settings: Any, name: str) -> str:
    choices = [choice for choice in _choices(kind) if isinstance(choice, str)]
    if typing.get_origin(kind) is tuple and isinstance(value, str | list):
        return "write it in parentheses, with a comma after a single entry"
    if choices and isinstance(value, str):
        return nearest(value, choices)
    if isinstance(value, float) and value.is_integer():
        return f"use {value:.0f}"
    return _default(settings, name)


def _choices(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return tuple(choice for argument in typing.get_args(kind) for choice in _choices(argument))


def _default(settings: Any, name: str) -> str:
    field = next(field for field in dataclasses.fields(settings) if field.name == name)
    if field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default):
        return "set it to one"
    return "leave it out" if field.default is None else f"the default is {field.default!r}"
