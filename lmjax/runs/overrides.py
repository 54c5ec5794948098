"""The fields that a command sets: of a recipe, or of a pipeline's stages, each under its stage's name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from lmjax.errors import UserError, nearest, require, shortened
from lmjax.fields import checked, field_types
from lmjax.runs.field_list import flag_of, form_of, leaves, shared
from lmjax.settings import Pipeline
from lmjax.settings.field_paths import MEASURES, measures_of, part_of, with_field, with_stages
from lmjax.settings.renamed import renamed_fields
from lmjax.settings.words import Option, options_of, value_of

MOST_NAMED = 2  # options that a message offers


def overridden(recipe: Any, overrides: Sequence[str], spec: str, prog: str) -> Any:
    """The recipe `spec` with the fields that the words `--field value` of the command `prog` set, checked.

    In a pipeline, a field without a stage's name is the first stage's, but for the pipeline's own `measures`. A stage's
    name may be any; its own spelling goes before one that differs in "-", "_" and ".". Raises UserError for a word that
    names neither, and for a value that does not fit.
    """
    if not overrides:
        return recipe
    options, more = options_of(overrides), f" ({prog} {shortened(spec)[1:-1]} --help lists all)"
    if not isinstance(recipe, Pipeline):
        return checked(_with(recipe, [(option, option.path, "--") for option in options], more))
    stages, names = recipe.stages, [stage.name for stage in recipe.stages]
    own: dict[int, list[Set]] = {}
    measured: list[Set] = []
    for option in options:
        number, rest = _stage_of(option.written.lstrip("-"), names)
        if number is None and option.path[0] == MEASURES and MEASURES not in names:
            measured.append((option, option.path[1:], f"--{MEASURES}."))
        elif number is None:
            _require_field(option, names, stages[0])
            own.setdefault(0, []).append((option, option.path, "--"))
        else:
            path = Option(rest.lstrip("."), ()).path
            own.setdefault(number, []).append((option, path, f"--{flag_of(names[number])}."))
    changed = {number: _with(stages[number], sets, more) for number, sets in own.items()}
    return with_stages(recipe, changed, _with(measures_of(recipe), measured, more) if measured else None)


Set = tuple[Option, list[str], str]  # an option, the names on the way to its field, and what stands before these


def _with(settings: Any, sets: Sequence[Set], more: str) -> Any:
    """The settings, unchecked, with the values of options."""
    whole = settings
    for option, path, before in sets:
        if not path:
            raise _unknown(option, (whole, before, more))
        settings = _with_option(settings, option, path, before, (whole, before, more))
    return settings


def _with_option(settings: Any, option: Option, path: Sequence[str], before: str, root: tuple[Any, str, str]) -> Any:
    def refuse(holder: Any, rest: Sequence[str]) -> UserError:
        way = "".join(f"{name}." for name in path[: len(path) - len(rest)])
        if dataclasses.is_dataclass(holder):
            _refuse_old_name(holder, rest[0], before + way, option)
        return _unknown(option, root)

    def change(holder: Any, name: str) -> tuple[str, Any]:
        kinds = {} if isinstance(holder, tuple) else field_types(_class(holder))
        if kinds.get(name.removeprefix("no_")) is bool and name not in kinds:
            require(not option.words, option.written, " ".join(option.words), "no value behind it", "leave that out")
            return name.removeprefix("no_"), False
        if name not in kinds:
            raise refuse(holder, [name])
        return name, _leaf(kinds[name], getattr(holder, name), option)

    return with_field(settings, path, change, refuse)


def _leaf(kind: Any, value: Any, option: Option) -> Any:
    if part_of(kind) is None:
        return value_of(kind, option)
    if type(None) in getattr(kind, "__args__", ()) and [word.lower() for word in option.words] == ["none"]:
        return None
    below = [leaf.option for leaf in leaves(value, f"{option.written}.")] if dataclasses.is_dataclass(value) else []
    example = f", such as {below[0]}" if below else ""
    raise UserError(f"{option.written}: it holds fields of its own: expected one of them{example}; set that one")


def _unknown(option: Option, root: tuple[Any, str, str]) -> UserError:
    """The error of an option that names no field: the nearest ones, with the form of their values."""
    settings, before, more = root
    known = {leaf.option: leaf for leaf in leaves(settings, before, unset=True)}
    written = option.written.replace("_", "-")
    same = shared(list(known), written.lstrip("-").rpartition(".")[2])
    close = difflib.get_close_matches(written, same or known, n=MOST_NAMED if same else 1, cutoff=0.0 if same else 0.6)
    offered = [f"{name} {form_of(known[name].kind)}" for name in close]
    hint = f"did you mean {' or '.join(offered)}?" if offered else "no other is like it"
    return UserError(f"{shortened(option.written)[1:-1]}: no such field; {hint}{more}")


def _refuse_old_name(settings: Any, name: str, before: str, option: Option) -> None:
    """Raises UserError where a field of `settings` that an option names has a new name."""
    new = renamed_fields(type(settings)).get(name.removeprefix("no_"))
    if new is not None:
        use = f"{before}{new.replace('_', '-')}"
        raise UserError(f"{option.written}: this field is now called {new!r}; use {use}")


def _require_field(option: Option, names: Sequence[str], first: Any) -> None:
    """Raises UserError where an option begins neither with a stage's name nor with a field of the first stage."""
    begins = flag_of(option.path[0])
    fields = [name.replace("_", "-") for name in field_types(_class(first))]
    old = [name.replace("_", "-") for name in renamed_fields(type(first))]
    if begins.removeprefix("no-") not in (*fields, *old):
        known = [*map(flag_of, names), *fields]
        written = shortened(option.written)[1:-1]
        raise UserError(f"{written}: neither a stage nor a field of the first; {nearest(begins, known)}")


def _class(settings: Any) -> Any:
    return type(settings)


def _stage_of(option: str, names: Sequence[str]) -> tuple[int | None, str]:
    """Which stage an option names, by its own spelling or else by that of an option, and what follows the name."""
    for spelling in (str, flag_of):
        found = []
        for number, name in enumerate(names):
            begins, rest = option[: len(name)], option[len(name) :]
            if spelling(begins) == spelling(name) and rest[:1] in ("", "."):
                found.append((len(name), number, rest))
        if found:
            _, number, rest = max(found)
            return number, rest
    return None, ""
