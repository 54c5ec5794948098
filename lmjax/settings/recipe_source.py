"""A recipe as the source of a Python file that makes it: fields that have their default are left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.settings import Pipeline, Stage, Sweep
from lmjax.settings.stage import TaskSettings

WIDTH = 100  # of a call on one line
SETTINGS, TASKS = "lmjax.settings", "lmjax.tasks."  # where the classes of a recipe are imported from


def source_of(recipe: Stage | Pipeline | Sweep, docstring: str, here: Path | None = None) -> str:
    """A recipe file whose recipe() returns the same. Raises UserError for a stage with a task of the user's own.

    Paths below `here`, where the file will be, are written as those of its folder, wherever that is moved.
    """
    writer = _Writer(here)
    body = writer.written(recipe, "    ")
    quoted = docstring.replace("\\", "\\\\").replace('"""', "'''")
    lines = [f'"""{quoted}"""', ""]
    lines += ["from pathlib import Path", ""] if writer.moves else []
    for module, own in sorted(writer.names.items()):
        lines += [f"from {module} import (", *(f"    {name}," for name in sorted(own)), ")"]
    lines += ["", "HERE = Path(__file__).parent"] if writer.moves else []
    return "\n".join([*lines, "", "", f"def recipe() -> {type(recipe).__name__}:", f"    return {body}", ""])


class _Writer:
    """Writes values as Python, and keeps the names that are then to be imported."""

    def __init__(self, here: Path | None) -> None:
        self.names: dict[str, set[str]] = {}  # of classes, by the module that they are imported from
        self.moves = False  # whether a path was written as one of the file's folder
        self._here = here

    def written(self, value: Any, indent: str) -> str:
        inner = indent + "    "
        if isinstance(value, tuple):
            return _call("", [self.written(item, inner) for item in value], indent, tuple_of=len(value))
        if not dataclasses.is_dataclass(value):
            return repr(value)
        task = isinstance(value, TaskSettings)
        if task and not type(value).__module__.startswith(TASKS):
            raise UserError("task: a task of one's own stands in no recipe that is written; expected a task of lmjax's")
        module = type(value).__module__ if task else SETTINGS
        self.names.setdefault(module, set()).add(type(value).__name__)
        fields = [field for field in dataclasses.fields(value) if getattr(value, field.name) != field.default]
        parts = [f"{field.name}={self._field(field.name, getattr(value, field.name), inner)}" for field in fields]
        return _call(type(value).__name__, parts, indent)

    def _field(self, name: str, value: Any, indent: str) -> str:
        inside = self._here is not None and name == "path" and value and Path(value).is_relative_to(self._here)
        if not inside:
            return self.written(value, indent)
        self.moves = True
        return f"str(HERE / {str(Path(value).relative_to(self._here or ''))!r})"


def _call(name: str, parts: list[str], indent: str, tuple_of: int = 0) -> str:
    comma = "," if tuple_of == 1 else ""
    line = f"{name}({', '.join(parts)}{comma})"
    if len(indent) + len(line) <= WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{indent}    {part},\n" for part in parts)
    return f"{name}(\n{inner}{indent})"
