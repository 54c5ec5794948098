"""Checks the values of a settings object: the declared type of each field, and the bounds that several share.

A settings object comes in, with the name that its fields have in a recipe; nothing comes out, or a UserError that names
the field, its value, what was expected and a likely fix.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from lmjax.errors import UserError, nearest, nearest_sizes, require, shortened


def check_types(owner: str, settings: Any) -> None:
    """Raises UserError at the first field whose value is not of the type that the field declares.

    A whole number, of at most 64 bits, is also a number; True is neither. Numbers are finite.
    """
    for name, kind in field_types(settings.__class__).items():
        value = getattr(settings, name)
        if not fits(kind, value):
            field = f"{owner}.{name}".lstrip(".")
            raise UserError(
                f"{field} = {shortened(value)}: expected {expected(kind, value)}; {_fix(kind, value, settings, name)}"
            )


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
    raise UserError(
        f"{field} = {shortened(url)}: expected a path of this machine, lmjax opens no URLs; {fix}, and name that folder"
    )


def check_positive(owner: str, settings: Any, *names: str) -> None:
    """Raises UserError at the first of the named fields that is 0 or below; None passes."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value > 0, f"{owner}.{name}", value, "a number above 0", _default(settings, name))


def check_weights(field: str, sources: Sequence[Any]) -> None:
    """Raises UserError where some of the sources, which are mixed, have a weight and others have none."""
    without = [number for number, source in enumerate(sources) if source.weight is None]
    mixed = 0 < len(without) < len(sources)
    fix = "give every source a weight, or none: then each counts by its tokens"
    place = f"{field}[{without[0]}].weight" if mixed else field
    require(not mixed, place, None, "a number above 0, because other sources have one", fix)


def check_fraction(owner: str, settings: Any, *names: str) -> None:
    """Raises UserError at the first of the named fields that is not in [0, 1)."""
    for name in names:
        value = getattr(settings, name)
        require(0 <= value < 1, f"{owner}.{name}", value, "a fraction in [0, 1)", _default(settings, name))


def check_divides(field: str, parts: int, wholes: dict[str, int]) -> None:
    """Raises UserError naming the nearest that fit where one of the sizes, by field, is not cut evenly in `parts`."""
    common = math.gcd(*wholes.values())
    for name, whole in wholes.items():
        if whole % parts:
            fix = f"use {field} = {nearest_sizes(parts, (n for n in range(1, common + 1) if common % n == 0))}"
            if len(wholes) == 1:
                fix += f", or {name} = {nearest_sizes(whole, range(parts, whole + parts + 1, parts))}"
            raise UserError(f"{field} = {parts}: expected a divisor of {name} = {whole}; {fix}")


@functools.cache
def field_types(settings: Any) -> dict[str, Any]:
    """The declared type of each field of a dataclass."""
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


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
