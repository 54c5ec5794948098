"""Reads recipes, from Python files and from their exact JSON form, and compares them.

A recipe file is plain Python with a function `recipe()` or, where it offers sizes, `recipe(size)`. Both ways give a
checked recipe, or a UserError that names the file and the line or the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import traceback
import typing
from pathlib import Path
from typing import Any

import lmjax.settings
from lmjax.errors import FieldError, UserError, joined, nearest, shortened, text_of
from lmjax.fields import Settings, checked, described, field_types, require_local, unchecked
from lmjax.files import check_form, decode_json, decode_text, is_safe_name, read_bytes, read_text, run_file
from lmjax.kinds import without_unused
from lmjax.settings import Pipeline, Stage, Sweep
from lmjax.settings.former_defaults import with_former
from lmjax.settings.renamed import module_hint, renamed_fields, renamed_function
from lmjax.settings.stage import KINDS, SavedTask, TaskSettings


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


def load_recipe(spec: str) -> Any:
    """The stage or pipeline of `spec`: a path, or the bare name of a file in experiments/, with `:SIZE` where it has
    sizes. Raises UserError, also for a sweep."""
    recipe, path = _load(spec)
    if isinstance(recipe, Sweep):
        raise UserError(f"{path}: a sweep of {len(recipe.runs)} runs; expected a stage or a pipeline; use lmjax sweep")
    return recipe


def load_sweep(spec: str) -> Sweep:
    """As `load_recipe`, of a sweep."""
    recipe, path = _load(spec)
    if not isinstance(recipe, Sweep):
        raise UserError(f"{path}: a {type(recipe).__name__}; expected a Sweep; use lmjax run")
    return recipe


def _load(spec: str) -> tuple[Any, Path]:
    require_local("RECIPE", spec)
    name, _, size = spec.partition(":")
    path = _find(name)
    make = _recipe_function(path)
    sizes = typing.get_args(_run_user_code(path, lambda: typing.get_type_hints(make)).get("size"))
    name = shortened(spec)[1:-1]
    if size and not sizes:
        raise UserError(f"{name}: {path} offers no sizes; leave out {shortened(':' + size)}")
    if size and size not in sizes:
        known = f"{nearest(size, sizes)} (sizes: {', '.join(sizes)})"
        raise UserError(f"{name}: {path} has no size {shortened(size)}; {known}")
    recipe = _run_user_code(path, lambda: _made(lambda: make(size) if size else make()))
    if type(recipe) not in (Pipeline, Sweep, *KINDS.values()):
        raise UserError(f"{path}: recipe() returned {type(recipe).__name__}; return one of lmjax.settings's stages")
    return recipe, path


def recipe_names() -> list[str]:
    """The bare names that `load_recipe` knows: of the files in experiments/, here and where lmjax is installed."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.py")})


def _folders() -> list[Path]:
    return [Path("experiments"), Path(__file__).parents[2] / "experiments"]


def _find(name: str) -> Path:
    candidates = [Path(name)] if name.endswith(".py") else [folder / f"{name}.py" for folder in _folders()]
    for path in candidates if is_safe_name(Path(name).name) else ():
        if path.is_file():
            return path
        if path.is_dir():
            raise UserError(f"{path}: it is a folder; expected a recipe file; name a file in it")
    looked = ", ".join(shortened(str(path))[1:-1] for path in candidates)
    raise UserError(f"no recipe {shortened(name)}: looked for {looked}; {nearest(name[:200], recipe_names())}")


def _recipe_function(path: Path) -> typing.Callable[..., Any]:
    source = read_bytes(path)
    if not any(b"coding" in line for line in source.splitlines()[:2]):  # PEP 263: Python knows how to read it
        decode_text(source, path)
    module = _run_user_code(path, lambda: run_file(path, f"lmjax_recipe_{path.stem}"))
    make = getattr(module, "recipe", None)
    if not inspect.isfunction(make):
        raise UserError(f"{path}: expected a function recipe() that returns a recipe; add one")
    return make


def _made(make: typing.Callable[[], Any]) -> Any:
    """The recipe that `make` returns. For an error of a field, `make` runs again, unchecked, to find its full path."""
    try:
        return make()
    except FieldError as error:
        found = None
        with contextlib.suppress(Exception):  # of the user's code, which may count on checked values
            found = _first_error(make)
        same = found is not None and found.rest == error.rest and found.field.endswith(error.field)
        raise (found if same and found else error).with_traceback(error.__traceback__) from None


def _first_error(make: typing.Callable[[], Any]) -> FieldError | None:
    with unchecked():
        recipe = make()
    try:
        for stage in recipe.stages:
            checked(stage, "" if stage is recipe else stage.name)
    except FieldError as error:
        return error
    return None


def _run_user_code(path: Path, call: typing.Callable[[], Any]) -> Any:
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a recipe does wrong is the user's to fix
        here = (str(path), str(path.absolute()))  # as an import names it
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in here]
        own = isinstance(error, SyntaxError) and error.filename in here
        line = error.lineno if own and isinstance(error, SyntaxError) else frames[-1] if frames else None
        place = f"{path}:{line}" if line else str(path)
        said = text_of(error)
        what = said if len(said) < 1000 else shortened(said, 600)[1:-1]
        message = what if isinstance(error, UserError) else f"{type(error).__name__}: {what}{_hint(error)}"
        raise UserError(f"{place}: {message}") from error


def _hint(error: BaseException) -> str:
    """For a keyword, a field or a module that is not there: its new name, or the nearest field."""
    if isinstance(error, SystemExit):
        return "; a recipe returns, and leaves the process to lmjax"
    if isinstance(error, AttributeError) and isinstance(error.obj, Settings):
        return f"; {_known_field(type(error.obj), error.name or '')}"
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text_of(error))
    parts: dict[str, Any] = {
        **vars(lmjax.settings),
        **{stage.__name__: stage for stage in KINDS.values()},
    }
    part = found and parts.get(found[1])
    return f"; {_known_field(part, found[2])}" if found and part else module_hint(error)


def _known_field(part: type, name: str) -> str:
    """For a field that a settings class does not have: its new name, or the nearest that the class has."""
    new = renamed_fields(part).get(name)
    return f"{name!r} is now called {new!r}" if new else nearest(name, field_types(part))


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
            raise UserError(f"{where}: unknown field {joined(field, name)!r}; {_known_field(part, name)}")
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
