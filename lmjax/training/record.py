"""The record of a run: `metrics.jsonl`, one JSON object per line, and TensorBoard events beside it.

A line holds `step` and numbers; samples hold `prompt` and `sample`. JSON has no NaN or infinity: such a number is
written as the string "nan", "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from lmjax.errors import UserError

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Writes the lines of one run, resumed or not. Process 0 has one; the others have none.

    On opening, a torn last line is dropped, and so are lines of steps after `resumed_at`, which will be run again: the
    file holds each step once.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool, resumed_at: int) -> None:
        self._path = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= resumed_at] if self._path.exists() else []
        fresh = self._path.with_suffix(".rewritten")
        fresh.write_text("".join(_line(values) for values in kept), encoding="utf-8")
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._events: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line, which is on disk when this returns."""
        self._file.write(_line({"step": step} | values))
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)
                elif name == "sample":
                    self._events.add_text("sample", value, step)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._events is not None:
            self._events.close()


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
            values = json.loads(text)
            lines.append({name: _number(value) for name, value in values.items()} | {"step": int(values["step"])})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path}:{number}: expected a JSON object with a step; delete the line: {error}") from error
    return lines


def _line(values: dict[str, Any]) -> str:
    finite = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return json.dumps(finite, ensure_ascii=False) + "\n"


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
