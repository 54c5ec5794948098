"""The fields that a command sets: of a recipe, or of a pipeline's stages, each under its stage's name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from lmjax.errors import UserError, nearest, require, shortened
from lmjax.fields import checked, field_types, unchecked
from lmjax.runs.field_list import flag_of, form_of, leaves, part_of, shared, unchecked_default
from lmjax.settings import MeasureSettings, Pipeline
from lmjax.settings.renamed import renamed_fields
from lmjax.settings.words import Option, options_of, value_of

MEASURES = "measures"  # the field of a pipeline that options set, where no stage has that name
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
    stages, names = list(recipe.stages), [stage.name for stage in recipe.stages]
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
    for number, sets in own.items():
        stages[number] = checked(_with(stages[number], sets, more), names[number])
    measures = recipe.measures
    if measured:
        measures = checked(_with(measures or unchecked_default(MeasureSettings), measured, more), MEASURES)
    return dataclasses.replace(recipe, stages=tuple(stages), measures=measures)


Set = tuple[Option, list[str], str]  # an option, the names on the way to its field, and what stands before these


def _with(settings: Any, sets: Sequence[Set], more: str) -> Any:
    """The settings, unchecked, with the values of options."""
    whole = settings
    with unchecked():
        for option, path, before in sets:
            settings = _set(settings, path, option, before, (whole, before, more))
    return settings


def _set(settings: Any, path: Sequence[str], option: Option, before: str, root: tuple[Any, str, str]) -> Any:
    """The settings with the value of an option at the end of `path`; `before` is what the option has before it."""
    name, rest = (path[0], path[1:]) if path else ("", ())
    if isinstance(settings, tuple):
        number = int(name) if name.isdecimal() and len(name) < 9 else len(settings)
        if number >= len(settings) or not rest:
            raise _unknown(option, root)
        item = _set(settings[number], rest, option, f"{before}{name}.", root)
        return (*settings[:number], item, *settings[number + 1 :])
    kinds = field_types(_class(settings))
    negated = not rest and name.startswith("no_") and kinds.get(name[3:]) is bool
    field = name[3:] if negated else name
    _refuse_old_name(settings, name, before, option)
    if field not in kinds:
        raise _unknown(option, root)
    kind, value = kinds[field], getattr(settings, field)
    if negated:
        require(not option.words, option.written, " ".join(option.words), "no value behind it", "leave that out")
        return dataclasses.replace(settings, **{field: False})
    if rest:
        part = part_of(kind)
        inner = value if value is not None or part is None else unchecked_default(part)
        if not (dataclasses.is_dataclass(inner) or isinstance(inner, tuple)):
            raise _unknown(option, root)
        return dataclasses.replace(settings, **{field: _set(inner, rest, option, f"{before}{name}.", root)})
    return dataclasses.replace(settings, **{field: _leaf(kind, value, option)})


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
