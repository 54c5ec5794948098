"""Reads recipes, from Python files and from their exact JSON form, and compares them.

Both ways give a checked recipe, or a UserError that names the file and the line or the field. Of Python files see
lmjax/settings/recipe_functions.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

from lmjax.errors import FieldError, UserError, joined, shortened
from lmjax.fields import described, field_types
from lmjax.files import check_form, decode_json, read_text
from lmjax.kinds import without_unused
from lmjax.settings import Stage, Sweep
from lmjax.settings.former_defaults import with_former
from lmjax.settings.recipe_functions import known_field, recipe_function, recipe_names
from lmjax.settings.renamed import renamed_fields, renamed_function
from lmjax.settings.stage import KINDS, SavedTask, TaskSettings

__all__ = ["difference", "from_json", "load_recipe", "load_sweep", "read_recipe", "recipe_names", "to_json"]


def load_recipe(spec: str, **arguments: Any) -> Any:
    """The stage or pipeline of `spec`: a path, or the bare name of a file in experiments/, with `:SIZE` where it has
    sizes. `arguments` are those of its function. Raises UserError, also for a sweep."""
    return recipe_function(spec).trained(arguments)


def load_sweep(spec: str) -> Sweep:
    """As `load_recipe`, of a sweep."""
    function = recipe_function(spec)
    recipe = function.recipe({})
    if not isinstance(recipe, Sweep):
        raise UserError(f"{function.path}: a {type(recipe).__name__}; expected a Sweep; use lmjax run")
    return recipe


def to_json(recipe: Stage) -> str:
    """The recipe with every field written out; `from_json` gives back an equal recipe."""
    return json.dumps({"stage": recipe.kind, **plain(recipe)}, indent=2) + "\n"


def plain(recipe: Stage) -> dict[str, Any]:
    """The fields of a recipe as nested dicts of plain values."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, TaskSettings):
        return value.plain()
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def from_json(text: str, where: str = "recipe.json") -> Any:
    """The recipe that `to_json` wrote. Raises UserError naming the first field that does not fit."""
    value = decode_json(text, where, fix="restore the file or start anew")
    if not isinstance(value, dict) or str(value.get("stage")) not in KINDS:
        raise UserError(f"{where}: expected an object whose 'stage' is one of {', '.join(KINDS)}")
    return _decode(KINDS[value.pop("stage")], value, where)


def read_recipe(path: Path) -> Any:
    """The recipe in a file that holds what `to_json` gave. Raises UserError where it is damaged, or left empty."""
    return from_json(read_text(path), str(path))


def difference(old: Stage, new: Stage) -> list[str]:
    """One line per field that differs: `train.steps: 100 -> 200`."""
    if type(old) is not type(new):
        return [f"stage: {type(old).__name__} -> {type(new).__name__}"]
    before, after = (_without_idle_weights(flat(plain(recipe))) for recipe in (old, new))
    names = [*before, *(name for name in after if name not in before)]
    absent = "(absent)"
    pairs = ((name, before.get(name, absent), after.get(name, absent)) for name in names)
    return [f"{name}: {shortened(a)} -> {shortened(b)}" for name, a, b in pairs if a != b]


def _without_idle_weights(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without the weights of sources that are mixed with no others: older recipes have 1.0 there."""
    mixed = re.compile(r"(data\.train|dialogue\.train|mix)\.\d+\.weight")

    def idle(name: str) -> bool:
        several = name.rsplit(".", 2)[0] + ".1.weight" in fields
        return name.endswith(".weight") and not (mixed.fullmatch(name) and several)

    return {name: value for name, value in fields.items() if not idle(name)}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects by their names, as in "model.attention.heads"."""
    if isinstance(value, dict) and value:
        items: typing.Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in flat(item, f"{prefix}.{key}".lstrip(".")).items()}


def _decode(kind: Any, value: Any, where: str, field: str = "") -> Any:
    """A JSON value as its field's type: lists become tuples and objects dataclasses; those check the rest."""
    arguments = typing.get_args(kind)
    if isinstance(value, dict) and TaskSettings in arguments:
        return _saved_task(value, where, field)
    if isinstance(value, dict):
        part = next((k for k in (kind, *arguments) if dataclasses.is_dataclass(k)), None)
        if part is None:
            raise UserError(f"{where}: {field} = {shortened(value)}: expected {described(kind)}, found an object")
        return _decode_part(part, value, where, field)
    kind = next((k for k in (kind, *arguments) if typing.get_origin(k) is tuple), None)
    if isinstance(value, list) and kind is not None:
        entries = typing.get_args(kind)
        kinds = entries[:1] * len(value) if entries[-1] is Ellipsis else entries
        if len(kinds) == len(value):
            each = enumerate(zip(kinds, value, strict=True))
            return tuple(_decode(k, item, where, f"{field}[{i}]") for i, (k, item) in each)
    return renamed_function(value) if isinstance(value, str) else value


def _decode_part(part: Any, value: dict[str, Any], where: str, field: str) -> Any:
    kinds, new = field_types(part), renamed_fields(part)
    value = {new[name] if new.get(name, name) not in value else name: item for name, item in value.items()}
    value = with_former(part, value)
    for name in value:
        if name not in kinds:
            raise UserError(f"{where}: unknown field {joined(field, name)!r}; {known_field(part, name)}")
    known = without_unused(part.__name__, value)
    values = {name: _decode(kinds[name], item, where, joined(field, name)) for name, item in known.items()}
    try:
        return part(**values)
    except FieldError as error:
        raise UserError(f"{where}: {error.within(field)}") from error


def decoded_part(part: Any, value: dict[str, Any], where: str, field: str) -> Any:
    """A dataclass of settings from the values that `plain` gave. Raises UserError naming the first that is wrong."""
    listed: dict[str, Any] = json.loads(json.dumps(value))  # tuples as recipe.json has them
    return _decode_part(part, listed, where, field)


class _SavedTask(typing.TypedDict):
    task: str
    trunk: list[str]
    fields: dict[str, Any]


def _saved_task(value: dict[str, Any], where: str, field: str) -> SavedTask:
    """A task of somebody's own, by its name: no code is loaded for it."""
    form = check_form(value, _SavedTask, where, field, "restore the file or start anew")
    return SavedTask(form["task"], tuple(form["trunk"]), tuple(form["fields"].items()))
