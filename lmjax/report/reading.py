"""What a workdir says about its run: recipe, record, summary and environment, whatever of them is there yet."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.model.count import Count, count
from lmjax.recipe import STAGES, Recipe, from_json
from lmjax.training.record import METRICS_FILE, read_metrics

RECIPE_FILE, SUMMARY_FILE, ENVIRONMENT_FILE = "recipe.json", "summary.json", "environment.json"
COUNTS = tuple(field.name for field in dataclasses.fields(Count))


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it has come. `lines` is empty before the first line of the log."""

    folder: Path
    recipe: Recipe
    lines: list[dict[str, Any]]
    summary: dict[str, Any]  # empty until the run is done
    environment: dict[str, str]
    recorded: datetime | None  # when the last line was written, UTC

    @property
    def stage(self) -> str:
        return next(name for name, cls in STAGES.items() if cls is type(self.recipe))

    @cached_property
    def reached(self) -> int:
        """The last recorded step."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def done(self) -> bool:
        return self.summary.get("steps") == self.recipe.train.steps

    @property
    def tokens(self) -> int:
        """Tokens of all batches up to the last recorded step, padding included."""
        return BatchRamp(self.recipe.data).tokens_at(self.reached)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The model's counts; empty while its vocabulary is not known."""
        if self.done and all(name in self.summary for name in COUNTS):
            return {name: self.summary[name] for name in COUNTS}
        rows = self.recipe.model.vocab_size or _tokenizer_entries(self.folder)
        if rows is None:
            return {}
        model = dataclasses.replace(self.recipe.model, vocab_size=rows)
        return dataclasses.asdict(count(model, self.recipe.data.sequence_length))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, float64 [N] each, of the lines that hold the number `name`; empty where none does."""
        steps, values = self._numbers.get(name, ((), ()))
        return np.array(steps, np.float64), np.array(values, np.float64)

    def last(self, name: str) -> float | None:
        """The newest value of a number; None where no line holds it."""
        _, values = self._numbers.get(name, ((), ()))
        return float(values[-1]) if values else None

    @property
    def training_loss(self) -> str:
        """The name of the training curve: cross-entropy, which validation measures too, where the log holds it."""
        return "cross_entropy" if self.last("cross_entropy") is not None else "loss"

    @cached_property
    def _numbers(self) -> dict[str, tuple[list[int], list[float]]]:
        columns: dict[str, tuple[list[int], list[float]]] = {}
        for line in self.lines:
            for name, value in line.items():
                if isinstance(value, int | float):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(value)
        return columns


def read_run(folder: Path) -> RunRecord:
    """Reads a workdir. Raises UserError where it is none, or where one of its files is damaged."""
    recipe = folder / RECIPE_FILE
    if not recipe.is_file():
        what = "holds no recipe.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; expected the workdir of a run, such as runs/quickstart")
    log = folder / METRICS_FILE
    there = log.is_file()
    return RunRecord(
        folder=folder,
        recipe=from_json(recipe.read_text(encoding="utf-8"), str(recipe)),
        lines=read_metrics(folder) if there else [],
        summary=_read_object(folder / SUMMARY_FILE),
        environment=_read_object(folder / ENVIRONMENT_FILE),
        recorded=datetime.fromtimestamp(log.stat().st_mtime, UTC) if there else None,
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected a JSON object: {error}; delete the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; delete the file")
    return value


def _tokenizer_entries(folder: Path) -> int | None:
    """The entries of the tokenizer in the workdir; None where there is none yet, or more than one recipe's."""
    kept = [path for path in folder.glob("tokenizer-*") if path.suffix != ".partial"]
    if len(kept) != 1:
        return None
    from lmjax.data.tokenizer import load_tokenizer

    return load_tokenizer(kept[0]).vocab_size
