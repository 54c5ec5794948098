"""A recipe by its name, with other values of its fields: what `lmjax run NAME --field value` reads, for Python."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, field_error
from lmjax.fields import checked
from lmjax.settings import Pipeline, Stage
from lmjax.settings.field_paths import MEASURES, measures_of, with_field, with_stages
from lmjax.settings.recipe_files import load_recipe
from lmjax.settings.recipe_functions import known_field


def recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Stage | Pipeline:
    """The recipe of a name in experiments/, with `:SIZE` where it has sizes, or of a file.

    Args:
      name: such as "quickstart", "gpt2:124m" or "mine.py".
      overrides: other values of fields, as `with_values` takes them.

    Raises:
      UserError: there is no such recipe or field, or a value does not fit.
    """
    found: Stage | Pipeline = load_recipe(str(name))
    return with_values(found, overrides or {})


def with_values(recipe: Any, values: Mapping[str, Any]) -> Any:
    """The recipe with other values of fields, by their paths, as {"train.steps": 100, "data.train.0.path": "my.txt"}.

    In a pipeline a path begins with the name of a stage; without one it is the first stage's, but for the pipeline's
    own `measures`. The recipe is checked when all values are in it. Raises UserError for a field that is not there,
    with the nearest that is, and for a value that does not fit.
    """
    if not isinstance(recipe, Pipeline):
        return checked(_with(recipe, [(path, path, value) for path, value in values.items()]))
    names = [stage.name for stage in recipe.stages]
    own: dict[int, list[Value]] = {}
    measured: list[Value] = []
    for path, value in values.items():
        named, _, rest = path.partition(".")
        if named in names:
            own.setdefault(names.index(named), []).append((path, rest, value))
        elif named == MEASURES:
            measured.append((path, rest, value))
        else:
            own.setdefault(0, []).append((path, path, value))
    stages = {number: _with(recipe.stages[number], given) for number, given in own.items()}
    return with_stages(recipe, stages, _with(measures_of(recipe), measured) if measured else None)


Value = tuple[str, str, Any]  # a path, what is left of it below a stage, and the value


def _with(settings: Any, values: list[Value]) -> Any:
    """The settings, unchecked, with the values."""
    for path, below, value in values:
        change, refuse = functools.partial(_given, value), functools.partial(_unknown, path)
        settings = with_field(settings, below.split("."), change, refuse)
    return settings


def _given(value: Any, _: Any, name: str) -> tuple[str, Any]:
    return name, value


def _unknown(path: str, holder: Any, keys: Sequence[str]) -> UserError:
    """The error of a path whose end, `keys`, begins with no field of what it leads to."""
    if isinstance(holder, tuple):
        expected = f"the number of an entry, below {len(holder)}"
        return field_error(path, keys[0], expected, "set the whole field")
    if not dataclasses.is_dataclass(holder):
        at = path.removesuffix("." + ".".join(keys))
        return UserError(f"{path}: {at} is {holder!r}, which has no fields; set {at} as a whole")
    part: Any = type(holder)
    return UserError(f"{path}: {part.__name__} has no field {keys[0]!r}; {known_field(part, keys[0])}")
