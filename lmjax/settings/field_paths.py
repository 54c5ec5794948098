"""Other values of a recipe's fields, by the names on the way to them: for options of a command and for Python."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmjax.fields import checked, field_types, unchecked
from lmjax.settings import MeasureSettings, Pipeline

MEASURES = "measures"  # the field of a pipeline that a path may begin with, where no stage has that name

Change = Callable[[Any, str], tuple[str, Any]]  # of settings and the last name: the field that changes, and its value
Refuse = Callable[[Any, Sequence[str]], Exception]  # of settings and the path from them: it begins with no field


def with_field(settings: Any, path: Sequence[str], change: Change, refuse: Refuse) -> Any:
    """The settings, unchecked, with another value at the end of a path of fields' names and entries' numbers.

    Settings on the way that are None begin with the defaults of their fields.
    """
    name, *rest = path
    if isinstance(settings, tuple):
        number = int(name) if name.isdecimal() and len(name) < 9 else len(settings)
        if number >= len(settings):
            raise refuse(settings, path)
        own = with_field(settings[number], rest, change, refuse) if rest else change(settings, name)[1]
        return (*settings[:number], own, *settings[number + 1 :])
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        raise refuse(settings, path)
    kinds = field_types(type(settings))
    field, value = (name, None) if rest else change(settings, name)
    if field not in kinds:
        raise refuse(settings, path)
    if rest:
        inner, part = getattr(settings, name), part_of(kinds[name])
        inner = unchecked_default(part) if inner is None and part is not None else inner
        value = with_field(inner, rest, change, refuse)
    changed: Any = {field: value}
    with unchecked():
        return dataclasses.replace(settings, **changed)


def with_stages(pipeline: Pipeline, stages: Mapping[int, Any], measures: Any = None) -> Pipeline:
    """The pipeline with other stages, by their numbers, and other measures where not None; what is other is checked."""
    whole = list(pipeline.stages)
    for number, stage in stages.items():
        whole[number] = checked(stage, whole[number].name)
    changed = pipeline.measures if measures is None else checked(measures, MEASURES)
    return dataclasses.replace(pipeline, stages=tuple(whole), measures=changed)


def measures_of(pipeline: Pipeline) -> MeasureSettings:
    """What a path that begins with `measures` leads on from."""
    return pipeline.measures or unchecked_default(MeasureSettings)


def part_of(kind: Any) -> Any:
    """The class of settings that a field holds, alone or in place of None; None where it holds none."""
    alternatives = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    parts = [one for one in alternatives if dataclasses.is_dataclass(one)]
    if not parts and typing.get_origin(kind) is tuple and dataclasses.is_dataclass(typing.get_args(kind)[0]):
        return typing.get_args(kind)[0]
    return parts[0] if parts else None


def unchecked_default(part: Any) -> Any:
    """Settings of a class with the defaults of their fields, which need not go together."""
    with unchecked():
        return part()
