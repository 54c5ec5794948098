"""The fields that a command sets: of a recipe, or of a pipeline's stages, each under its stage's name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from lmjax.errors import UserError, nearest, shortened
from lmjax.fields import checked, unchecked
from lmjax.settings import MeasureSettings, Pipeline
from lmjax.settings.renamed import renamed_fields
from lmjax.settings.stage import TaskSettings

LONGEST_WORD = 200  # characters of a word that a message repeats
MEASURES = "measures"  # the field of a pipeline that options set, where no stage has that name
HELP = ("-h", "--help")


def overridden(recipe: Any, overrides: Sequence[str], spec: str, prog: str) -> Any:
    """The recipe with the fields that the words `--field value` set; `--help` lists all fields and leaves.

    In a pipeline, a field without a stage's name is the first stage's, but for the pipeline's own `measures`. A stage's
    name may be any; its own spelling goes before one that differs in "-", "_" and ".". Raises UserError for a word that
    names neither.
    """
    if not overrides:
        return recipe
    text = f"The fields of {spec}. In a pipeline, a field without a stage's name is the first stage's."
    about = (f"{prog} {shortened(spec)[1:-1]}", text)
    if not isinstance(recipe, Pipeline):
        for word in filter(_is_option, overrides):
            _refuse_old_name("--", word.lstrip("-"), recipe)
        return checked(_as_stage(_parsed(_with_own_task(recipe), recipe, overrides, about), recipe))
    stages = list(recipe.stages)
    names = [stage.name for stage in stages]
    measures = [] if MEASURES in names else [(MEASURES, recipe.measures or MeasureSettings())]
    if any(word in HELP for word in overrides):
        _parsed_under([(flag_of(stage.name), stage) for stage in stages] + measures, ["--help"], about)
    measured, words = _of_measures(overrides, names)
    if measured:
        (parsed,) = _parsed_under(measures, measured, about)
        recipe = dataclasses.replace(recipe, measures=checked(parsed, MEASURES))
    own, first = _by_stage(words, names, stages)
    if first:
        stages[0] = checked(_as_stage(_parsed(_with_own_task(stages[0]), stages[0], first, about), stages[0]), names[0])
    for number, words in own.items():
        (parsed,) = _parsed_under([(flag_of(names[number]), stages[number])], words, about)
        stages[number] = checked(parsed, names[number])
    return dataclasses.replace(recipe, stages=tuple(stages))


def _of_measures(words: Sequence[str], names: list[str]) -> tuple[list[str], list[str]]:
    """The words that set what a pipeline measures, and the others."""
    own: list[str] = []
    others: list[str] = []
    place = others
    for word in words:
        if _is_option(word):
            of_stage = _stage_of(word.lstrip("-"), names)[0] is not None
            place = own if word.startswith(f"--{MEASURES}.") and not of_stage else others
        place.append(word)
    return own, others


def flag_of(name: str) -> str:
    """A stage's name as it stands in an option."""
    return re.sub(r"[\W_]", "-", name)


def _parsed_under(stages: Sequence[tuple[str, Any]], words: Sequence[str], about: tuple[str, str]) -> list[Any]:
    """Stages, the fields of each of which have its name before them."""
    shown: list[str] = []
    for flag, _ in stages:  # in the list of all fields two names may differ in their signs alone
        shown.append(flag if flag not in shown else f"{flag}-{len(shown) + 1}")
    fields = [
        (f"stage_{number}", Annotated[_with_own_task(stage), tyro.conf.arg(name=flag)])
        for number, (flag, (_, stage)) in enumerate(zip(shown, stages, strict=True))
    ]
    kind = dataclasses.make_dataclass("Stages", fields, frozen=True)
    parsed = _parsed(kind, kind(*(stage for _, stage in stages)), words, about)
    return [_as_stage(getattr(parsed, name), stage) for (name, _), (_, stage) in zip(fields, stages, strict=True)]


def _with_own_task(stage: Any) -> Any:
    """The stage's class; where it has a task of its own, with that one's class in place of what all tasks share."""
    tasks = {
        field.name: type(getattr(stage, field.name))
        for field in dataclasses.fields(stage)
        if isinstance(getattr(stage, field.name), TaskSettings)
    }
    if not tasks:
        return type(stage)
    typed = [(name, kind, dataclasses.field(default=getattr(stage, name))) for name, kind in tasks.items()]
    return dataclasses.make_dataclass(type(stage).__name__, typed, bases=(type(stage),), frozen=True)


def _as_stage(parsed: Any, stage: Any) -> Any:
    if type(parsed) is type(stage):
        return parsed
    with unchecked():
        return type(stage)(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(stage)})


def _parsed(kind: Any, default: Any, words: Sequence[str], about: tuple[str, str]) -> Any:
    """What the words make of `default`, unchecked. A mistake exits with 2, and its message cuts words that are long."""
    prog, text = about
    long = any(len(word) > LONGEST_WORD for word in words)
    try:
        with contextlib.redirect_stderr(io.StringIO()) if long else contextlib.nullcontext(), unchecked():
            return tyro.cli(kind, default=default, args=list(words), prog=prog, description=text)
    except SystemExit as leaving:
        if long and leaving.code == 2:
            short = [shortened(word)[1:-1] for word in words]
            tyro.cli(kind, default=default, args=short, prog=prog, description=text)
        raise


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-[\d.].*", word)


def _refuse_old_name(before: str, option: str, settings: Any) -> None:
    """Raises UserError where `option`, which follows `before`, names a field of `settings` that has a new name."""
    for name in option.partition("=")[0].split("."):
        field = name.replace("-", "_")
        new = renamed_fields(type(settings)).get(field.removeprefix("no_"))
        if new is not None:
            raise UserError(f"{before}{name}: this field is now called {new!r}; use {before}{new.replace('_', '-')}")
        is_entry = isinstance(settings, tuple) and name.isdigit() and int(name) < len(settings)
        settings = settings[int(name)] if is_entry else getattr(settings, field, None)
        before += f"{name}."


def _by_stage(words: Sequence[str], names: list[str], stages: Sequence[Any]) -> tuple[dict[int, list[str]], list[str]]:
    """The words that set fields of each stage, by its number, and those that set fields of the first without a name."""
    fields = [field.name.replace("_", "-") for field in dataclasses.fields(stages[0])]
    own: dict[int, list[str]] = {}
    others: list[str] = []
    place = others
    for word in words:
        if _is_option(word):
            number, rest = _stage_of(word.lstrip("-"), names)
            option = word.lstrip("-") if number is None else rest.lstrip(".")
            _refuse_old_name(word[: len(word) - len(option)], option, stages[number or 0])
            part = flag_of(re.split(r"[.=]", word.lstrip("-"))[0])
            if number is None and part not in fields:
                known = [*map(flag_of, names), *fields]
                raise UserError(
                    f"{shortened(word)[1:-1]}: neither a stage nor a field of the first; {nearest(part, known)}"
                )
            place = others if number is None else own.setdefault(number, [])
            word = word if number is None else f"--{flag_of(names[number])}{rest}"
        place.append(word)
    return own, others


def _stage_of(option: str, names: list[str]) -> tuple[int | None, str]:
    """Which stage an option names, by its own spelling or else by that of an option, and what follows the name."""
    for spelling in (str, flag_of):
        found = []
        for number, name in enumerate(names):
            begins, rest = option[: len(name)], option[len(name) :]
            if spelling(begins) == spelling(name) and rest[:1] in ("", ".", "="):
                found.append((len(name), number, rest))
        if found:
            _, number, rest = max(found)
            return number, rest
    return None, ""
