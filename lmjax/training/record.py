"""The record of a run: `metrics.jsonl`, one JSON object per line, which trackers receive, too.

A line holds `step` and numbers, or a table of numbers; samples hold `prompt` and `sample`. JSON has no NaN or infinity:
such a number is written as the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from lmjax.errors import UserError
from lmjax.files import MalformedJsonError, check_form, parse_json, write_whole
from lmjax.run_files import METRICS_FILE
from lmjax.training.trackers import Tracker

TEXTS = ("prompt", "sample")
CHANGED = "changed"  # the fields of the recipe that have changed since the step, each as "field: before -> after"


CALIBRATION, BINS_COLUMNS = "calibration", 3  # a table: confidence, share in the right order, pairs
_HELD: dict[str, Any] = {**dict.fromkeys(TEXTS, str), CHANGED: list[str], CALIBRATION: list[list[float]]}


class _Line(TypedDict):
    step: int


class Recorder:
    """Writes the lines of one run, resumed or not. One process of a run has it; those of the others are `silent`.

    On opening, a torn last line is dropped, and so are lines of steps after `resumed_at`, which will be run again: the
    file holds each step once. `kept` are the lines that stay.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resumed_at: int,
        silent: bool = False,
        trackers: Callable[[int], list[Tracker]] = lambda next_step: [],
    ) -> None:
        """`trackers` opens those that the lines go to, too, from a step on."""
        self._path = workdir / METRICS_FILE
        self._silent = silent
        lines = read_metrics(workdir) if self._path.exists() else []
        self.kept = [_no_later(line, resumed_at) for line in lines if line["step"] <= resumed_at or CHANGED in line]
        if silent:
            return
        write_whole(self._path, "".join(map(_line, self.kept)))
        self._file = self._path.open("a", encoding="utf-8")
        self._trackers = trackers(resumed_at + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line, which has left this process when this returns."""
        if self._silent:
            return
        self._file.write(_line({"step": step} | values))
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        if self._silent:
            return
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.close()


def note_changes(workdir: Path, step: int | None, changes: list[str]) -> None:
    """Writes what a run changes of the recipe, from `step` on; None: nothing was done, and an old record goes.

    What another run changed at the same step, and took no step with, goes too.
    """
    path = workdir / METRICS_FILE
    if step is None:
        path.unlink(missing_ok=True)
        return
    lines = read_metrics(workdir) if path.exists() else []
    kept = [line for line in lines if CHANGED not in line or line["step"] < step]
    place = sum(line["step"] <= step for line in kept)
    new = [{"step": step, CHANGED: changes}] if changes else []
    if len(kept) < len(lines) or new:
        write_whole(path, "".join(map(_line, [*kept[:place], *new, *kept[place:]])))


def _no_later(line: dict[str, Any], step: int) -> dict[str, Any]:
    """A line that stays although the steps after `step` will be run again."""
    return line | {"step": min(line["step"], step)}


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's record. A last line without its end, left by a killed process, is not one.

    Raises UserError where there is no record, or a whole line is not a JSON object with a `step`.
    """
    path = workdir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the record of a run, which `lmjax run` writes")
    *whole, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            lines.append(_read(check_form(parse_json(text), _Line, f"{path}:{number}"), f"{path}:{number}"))
        except (MalformedJsonError, UserError) as error:
            raise UserError(f"{path}:{number}: expected a JSON object with a step; delete the line: {error}") from error
    return lines


def _read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a line: numbers, but for those that `_HELD` names."""
    read = {name: value if name in _HELD else _number(value) for name, value in values.items()}
    for name, value in read.items():
        if name in _HELD or not isinstance(value, float):  # which may be none that is finite
            check_form(value, _HELD.get(name, float), where, name)
    if any(len(row) != BINS_COLUMNS for row in read.get(CALIBRATION, ())):
        raise UserError(f"{where}: {CALIBRATION}: expected rows of {BINS_COLUMNS} numbers")
    return read


def _line(values: dict[str, Any]) -> str:
    finite = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return json.dumps(finite, ensure_ascii=False) + "\n"


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
