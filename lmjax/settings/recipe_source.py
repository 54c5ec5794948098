"""A recipe as the source of a Python file that makes it: fields that have their default are left out."""

from __future__ import annotations

import dataclasses
from typing import Any

from lmjax.errors import UserError
from lmjax.settings.stage import Stage, TaskSettings

WIDTH = 100  # of a call on one line
SETTINGS, TASKS = "lmjax.settings", "lmjax.tasks."  # where the classes of a recipe are imported from

Names = dict[str, set[str]]  # of classes, by the module that they are imported from


def source_of(stage: Stage, docstring: str) -> str:
    """A recipe file whose recipe() returns the stage. Raises UserError for a stage with a task of the user's own."""
    names: Names = {}
    body = _written(stage, names, "    ")
    quoted = docstring.replace("\\", "\\\\").replace('"""', "'''")
    lines = [f'"""{quoted}"""', ""]
    for module, own in sorted(names.items()):
        lines += [f"from {module} import (", *(f"    {name}," for name in sorted(own)), ")"]
    return "\n".join([*lines, "", "", f"def recipe() -> {type(stage).__name__}:", f"    return {body}", ""])


def _written(value: Any, names: Names, indent: str) -> str:
    task = isinstance(value, TaskSettings)
    if task and not type(value).__module__.startswith(TASKS):
        raise UserError("task: a task of one's own stands in no recipe that is written; expected a task of lmjax's")
    if isinstance(value, tuple):
        return _call("", [_written(item, names, indent + "    ") for item in value], indent, tuple_of=len(value))
    if not dataclasses.is_dataclass(value):
        return repr(value)
    module = type(value).__module__ if task else SETTINGS
    names.setdefault(module, set()).add(type(value).__name__)
    fields = [field for field in dataclasses.fields(value) if getattr(value, field.name) != field.default]
    parts = [f"{field.name}={_written(getattr(value, field.name), names, indent + '    ')}" for field in fields]
    return _call(type(value).__name__, parts, indent)


def _call(name: str, parts: list[str], indent: str, tuple_of: int = 0) -> str:
    comma = "," if tuple_of == 1 else ""
    line = f"{name}({', '.join(parts)}{comma})"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{indent}    {part},\n" for part in parts)
    return f"{name}(\n{inner}{indent})"
