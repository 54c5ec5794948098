"""Every field of a recipe as the option that sets it, with its form, its value and what it is: for `--help`."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from lmjax.errors import shortened
from lmjax.fields import field_types
from lmjax.settings import Pipeline
from lmjax.settings.field_paths import MEASURES, measures_of, part_of, unchecked_default
from lmjax.settings.field_texts import field_texts
from lmjax.settings.recipe_functions import RecipeFunction, option_of

WIDTH = 100
_FORMS = {int: "INT", float: "FLOAT", str: "STR", bool: "true|false", type(None): "none"}


class Leaf(NamedTuple):
    """A field that holds a value."""

    option: str
    kind: Any
    value: Any
    text: str


def leaves(settings: Any, prefix: str = "--", *, unset: bool = False) -> Iterator[Leaf]:
    """The fields of settings and of the settings in them, in order; with `unset` those of settings that are None, too.

    Else OPTION.FIELD stands for the latter.
    """
    part_class: Any = type(settings)
    texts = field_texts(part_class)
    for name, kind in field_types(part_class).items():
        value, option = getattr(settings, name), f"{prefix}{name.replace('_', '-')}"
        part = part_of(kind)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{option}.", unset=unset)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, item in enumerate(value):
                yield from leaves(item, f"{option}.{number}.", unset=unset)
        elif part is not None and value is None and unset:
            yield from leaves(unchecked_default(part), f"{option}.", unset=unset)
        elif part is not None and value is None:
            yield Leaf(f"{option}.FIELD", part, None, texts.get(name, ""))
        elif part is None:
            yield Leaf(option, kind, value, texts.get(name, ""))


def field_lines(settings: Any, prefix: str = "--") -> Iterator[str]:
    """What `--help` prints of the settings."""
    for option, kind, value, text in leaves(settings, prefix):
        yield from _lines(option, f"{form_of(kind)}  (default: {_shown(value)})", text)


def stage_lines(recipe: Any) -> Iterator[str]:
    """What `--help` prints of a stage, or of a pipeline and its stages."""
    if not isinstance(recipe, Pipeline):
        yield from field_lines(recipe)
        return
    yield "Without a stage's name, a field is the first stage's."
    for stage in recipe.stages:
        yield f"\nstage {stage.name}:"
        yield from field_lines(stage, f"--{flag_of(stage.name)}.")
    if MEASURES not in [stage.name for stage in recipe.stages]:
        yield "\nwhat is measured of its models:"
        yield from field_lines(measures_of(recipe), f"--{MEASURES}.")


def flag_of(name: str) -> str:
    """A stage's name as it stands in an option."""
    return re.sub(r"[\W_]", "-", name)


def argument_lines(function: RecipeFunction) -> Iterator[str]:
    """What `--help` prints of a recipe's arguments."""
    texts, defaults = field_texts(function.make), function.defaults
    for name, kind in function.arguments.items():
        default = f"  (default: {_shown(defaults[name])})" if name in defaults else "  (required)"
        yield from _lines(option_of(name), form_of(kind) + default, texts.get(name, ""))


def _lines(option: str, form: str, text: str) -> Iterator[str]:
    yield f"  {option} {form}"
    yield from textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(shortened(one, 60) for one in value) or "none"
    return shortened(value, 60)


def form_of(kind: Any) -> str:
    """A declared type as the words of an option."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return "|".join(map(form_of, arguments))
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is tuple:
        each = [form_of(one) for one in arguments if one is not Ellipsis]
        return f"[{each[0]} ...]" if arguments[-1] is Ellipsis else " ".join(each)
    if dataclasses.is_dataclass(kind):
        return f"of {kind.__name__}"  # type: ignore[union-attr]
    return _FORMS.get(kind, "VALUE")


def shared(options: Sequence[str], name: str) -> list[str]:
    """The options that end with a name."""
    return [option for option in options if option.rpartition(".")[2].lstrip("-") == name]
