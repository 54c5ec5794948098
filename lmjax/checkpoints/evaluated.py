"""What the checkpoints of a stage were worth when they were evaluated, which is after each was saved.

`evaluations.json`, beside the checkpoints' folders, holds the number by which they are compared, for every step that
is still there, with a digest. Older versions of lmjax wrote it into a checkpoint's own folder, where it is read, too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lmjax.errors import UserError
from lmjax.files import read_json, write_whole

EVALUATIONS_FILE = "evaluations.json"
VALIDATION_LOSS, VALIDATION_REWARD = "validation_loss", "validation_reward"

Numbers = dict[str, float]


class Evaluated:
    """The numbers of a stage's checkpoints, in the folder that holds them."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the file is damaged."""
        self._folder = folder
        self._steps = _read(folder / EVALUATIONS_FILE)

    def of(self, step: int) -> Numbers:
        """The number by which a checkpoint is compared, under its name; {} where it was not evaluated."""
        if step in self._steps:
            return self._steps[step]
        file = self._folder / str(step) / "metrics" / "metrics"  # where Orbax wrote it
        return _numbers(read_json(file, dict[str, Any])) if file.is_file() else {}

    def note(self, step: int, numbers: Numbers, there: Collection[int]) -> None:
        """Keeps the number of a step, or that it has none; of the others, those that are `there` stay.

        The first process writes.
        """
        kept = {other: known for other, known in self._steps.items() if other != step and other in there}
        changed = kept | ({step: numbers} if numbers else {})
        if changed == self._steps:
            return
        self._steps = changed
        if jax.process_index() == 0:
            write_whole(self._folder / EVALUATIONS_FILE, _text(changed))


def worth(numbers: Any) -> float:
    """How good a checkpoint is by its number: of a loss less is better, else more, and none is worse than any."""
    for name, value in (numbers or {}).items():
        number = -float(value) if name == VALIDATION_LOSS else float(value)
        return -math.inf if math.isnan(number) else number
    return -math.inf


@dataclass
class BestEvaluated(policies.PreservationPolicy):
    """Keeps the `n` best of the checkpoints that were evaluated, the newest of equals."""

    evaluated: Evaluated
    n: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [info.step for info in checkpoints if self.evaluated.of(info.step)]
        best = sorted(steps, key=lambda step: (worth(self.evaluated.of(step)), step))[-self.n :]
        return [info.step in best for info in checkpoints]


def _read(path: Path) -> dict[int, Numbers]:
    if not path.is_file():
        return {}
    fix = f"delete it: then no checkpoint beside it counts as evaluated, and the newest one is used ({path.parent})"
    held = read_json(path, dict[str, Any], fix=fix)
    steps = held.get("steps")
    if not isinstance(steps, dict) or held.get("sha256") != _digest(steps):
        raise UserError(f"{path}: expected the numbers that were written to it, which its digest is of; {fix}")
    return {int(step): _numbers(numbers) for step, numbers in steps.items()}


def _numbers(values: dict[str, Any]) -> Numbers:
    return {name: float(value) for name, value in values.items()}


def _text(steps: dict[int, Numbers]) -> str:
    """Numbers that are not finite are written as in the record of a run."""
    named = {
        str(step): {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        for step, numbers in sorted(steps.items())
    }
    return json.dumps({"steps": named, "sha256": _digest(named)}, indent=1) + "\n"


def _digest(steps: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()
