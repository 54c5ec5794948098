"""A recipe by its name, with other values of its fields: what `lmjax run NAME --field value` reads, for Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, require
from lmjax.fields import checked, field_types, unchecked
from lmjax.settings import MeasureSettings, Pipeline, Stage
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
    several = isinstance(recipe, Pipeline)
    stages = {stage.name: stage for stage in recipe.stages} if several else {"": recipe}
    measures = getattr(recipe, "measures", None)
    changed = set()
    for path, value in values.items():
        named, _, rest = path.partition(".")
        if several and named == "measures" and named not in stages:
            measures = _set(measures or MeasureSettings(), rest.split("."), value, path)
            continue
        stage, field = (named, rest) if several and named in stages else (next(iter(stages)), path)
        stages[stage] = _set(stages[stage], field.split("."), value, path)
        changed.add(stage)
    stages = {name: checked(stage, name) if name in changed else stage for name, stage in stages.items()}
    if not several:
        return stages[""]
    measures = measures and checked(measures, "measures")
    return dataclasses.replace(recipe, stages=tuple(stages.values()), measures=measures)


def _set(settings: Any, keys: list[str], value: Any, path: str) -> Any:
    """The settings, unchecked, with a value at the end of `keys`."""
    key, *rest = keys
    if isinstance(settings, tuple):
        inside = key.isdecimal() and int(key) < len(settings)
        require(inside, path, key, f"the number of an entry, below {len(settings)}", "set the whole field")
        number = int(key)
        own = _set(settings[number], rest, value, path) if rest else value
        return (*settings[:number], own, *settings[number + 1 :])
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        at = path.removesuffix("." + ".".join(keys))
        raise UserError(f"{path}: {at} is {settings!r}, which has no fields; set {at} as a whole")
    if key not in field_types(type(settings)):
        raise UserError(f"{path}: {type(settings).__name__} has no field {key!r}; {known_field(type(settings), key)}")
    own = _set(getattr(settings, key), rest, value, path) if rest else value
    changed: Any = {key: own}
    with unchecked():
        return dataclasses.replace(settings, **changed)
