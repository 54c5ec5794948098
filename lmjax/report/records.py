"""What a workdir says about its run, or about the stages of its pipeline: recipe, record, summary and environment,
whatever of them is there yet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.errors import UserError
from lmjax.evaluate.measures import Measure, Measured, measure_of
from lmjax.files import check_form, read_json_if_there
from lmjax.model.flops import Count, count
from lmjax.run_files import (
    ENVIRONMENT_FILE,
    MEASURES_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    START_TOKENIZER,
    SUMMARY_FILE,
    stage_names,
)
from lmjax.settings import ModelSettings
from lmjax.settings.recipe_files import read_recipe
from lmjax.stages.registry import kind_of
from lmjax.training.record import CHANGED, TEXTS, read_metrics

if TYPE_CHECKING:
    from lmjax.stages.shown import Shown

COUNTS = tuple(field.name for field in dataclasses.fields(Count))


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it has come. `lines` is empty before the first line of the log."""

    folder: Path
    recipe: Any  # of a stage
    lines: list[dict[str, Any]]
    summary: dict[str, Any]  # empty until the run is done
    environment: dict[str, str]
    recorded: datetime | None  # when the last line was written, UTC
    measures: list[Measure] = field(default_factory=list)  # of the model that it ends with

    @property
    def stage(self) -> str:
        return str(self.recipe.kind)

    @cached_property
    def reached(self) -> int:
        """The last recorded step."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def steps(self) -> int | None:
        """The steps of the whole stage; None where its data say how many and it is not done, or it has none."""
        steps: int | None = self.recipe.steps
        return self.summary.get("steps") if steps is None else steps

    @cached_property
    def shown(self) -> Shown:
        """What reports show of a stage of this kind."""
        return kind_of(self.recipe).shown

    @property
    def done(self) -> bool:
        return bool(self.summary) and self.summary.get("steps") == self.steps

    @property
    def seen(self) -> tuple[int, str] | None:
        """How much was trained on, and what it is counted in; None for a kind that trains nothing."""
        return None if self.shown.seen is None else self.shown.seen(self.recipe, self.reached)

    @cached_property
    def model(self) -> ModelSettings | None:
        """The model's shape: the recipe's, or that of the stage beside this one which it starts from."""
        recipe, folder = self.recipe, self.folder
        seen = {folder}
        while recipe.model is None:
            folder = folder.parent / recipe.start
            file = folder / RECIPE_FILE
            if not recipe.start or folder in seen or not file.is_file():
                return None
            seen.add(folder)
            recipe = read_recipe(file)
        return recipe.model

    @cached_property
    def counts(self) -> dict[str, int]:
        """The model's counts; empty while its shape or vocabulary is not known."""
        if self.done and all(name in self.summary for name in COUNTS):
            return {name: self.summary[name] for name in COUNTS}
        if self.model is None:
            return {}
        rows = self.model.vocab_size or _tokenizer_entries(self.folder)
        if rows is None:
            return {}
        row_tokens = self.recipe.loading.sequence_length + self.recipe.sampled[1]
        return dataclasses.asdict(count(dataclasses.replace(self.model, vocab_size=rows), row_tokens))

    @cached_property
    def samples(self) -> dict[int, list[dict[str, Any]]]:
        """The lines that hold samples, by step."""
        by_step: dict[int, list[dict[str, Any]]] = {}
        for line in self.lines:
            if "sample" in line:
                by_step.setdefault(line["step"], []).append(line)
        return by_step

    @property
    def changes(self) -> list[tuple[int, str]]:
        """The fields of the recipe that changed between two runs, each with the steps that came before it."""
        return [(line["step"], change) for line in self.lines for change in line.get(CHANGED, ())]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, float64 [N] each, of the lines that hold the number `name`; empty where none does."""
        steps, values = self.numbers.get(name, ((), ()))
        return np.array(steps, np.float64), np.array(values, np.float64)

    def last(self, name: str) -> float | None:
        """The newest value of a number; None where no line holds it."""
        _, values = self.numbers.get(name, ((), ()))
        return float(values[-1]) if values else None

    def of_sources(self, name: str) -> dict[str, float]:
        """The newest value of a number that the log holds for each of several sources, by their names."""
        prefix = f"{name}/"
        columns = [column for column in self.numbers if column.startswith(prefix) and column != prefix]
        return {column.removeprefix(prefix): self.numbers[column][1][-1] for column in columns}

    @property
    def training_loss(self) -> str:
        """The name of the training curve: cross-entropy, which validation measures too, where the log holds it."""
        return "cross_entropy" if self.last("cross_entropy") is not None else "loss"

    @cached_property
    def numbers(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of each number that the log holds, by its name."""
        columns: dict[str, tuple[list[int], list[float]]] = {}
        for line in self.lines:
            for name, value in line.items():
                if isinstance(value, int | float):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(value)
        return columns


@dataclass(frozen=True)
class PipelineRecord:
    """The stages of a pipeline in order; None for one that has not begun."""

    folder: Path
    stages: dict[str, RunRecord | None]
    measures: list[Measure] = field(default_factory=list)  # of the model that the first of them starts from

    @property
    def begun(self) -> list[RunRecord]:
        return [run for run in self.stages.values() if run is not None]

    def best_of(self, policy: RunRecord) -> list[dict[str, Any]]:
        """Best-of-n sampling from what this policy started from, by the reward that it learned from; or nothing."""
        source = (policy.recipe.start, policy.recipe.reward_model_source[1])
        same = [run for run in self.begun if (run.recipe.start, run.recipe.reward_model_source[1]) == source]
        tables = [run.summary["best_of"] for run in same if run.summary.get("best_of")]
        return tables[-1] if tables else []


def read_pipeline(folder: Path) -> PipelineRecord:
    """Reads a pipeline's workdir. Raises UserError where one of its files is damaged."""
    begun = {name: (folder / name / RECIPE_FILE).is_file() for name in stage_names(folder)}
    stages = {name: read_run(folder / name) if begun[name] else None for name in begun}
    return PipelineRecord(folder, stages, read_measures(folder))


def read_run(folder: Path) -> RunRecord:
    """Reads a workdir. Raises UserError where it is none, or where one of its files is damaged."""
    recipe = folder / RECIPE_FILE
    if not recipe.is_file():
        what = "holds no recipe.json" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; expected the workdir of a run, such as runs/quickstart")
    log = folder / METRICS_FILE
    there = log.is_file()
    made = read_recipe(recipe)
    return RunRecord(
        folder=folder,
        recipe=made,
        lines=read_metrics(folder) if there else [],
        summary=read_summary(folder, made),
        environment=read_json_if_there(folder / ENVIRONMENT_FILE, dict[str, str], "delete the file") or {},
        recorded=datetime.fromtimestamp(log.stat().st_mtime, UTC) if there else None,
        measures=read_measures(folder),
    )


def read_measures(folder: Path) -> list[Measure]:
    """What was measured of a model; nothing where it was not. Raises UserError where the file is damaged."""
    fix = "delete the file; the run's command writes it again"
    measured = read_json_if_there(folder / MEASURES_FILE, Measured, fix)
    return [] if measured is None else [measure_of(plain) for plain in measured["measures"]]


def read_summary(folder: Path, recipe: Any) -> dict[str, Any]:
    """What a finished run came to; empty while it is not done. Raises UserError where the file is damaged or empty."""
    path = folder / SUMMARY_FILE
    fix = "delete the file; the run's command writes it again"
    summary = read_json_if_there(path, kind_of(recipe).summary_form, fix) or {}
    for name, value in summary.items():
        kind: Any = str if name in (*TEXTS, "device_kind") else list[dict[str, float]] if name == "best_of" else float
        if not isinstance(value, float):  # which may be none that is finite
            check_form(value, kind, path, name, fix)
    return summary


def _tokenizer_entries(folder: Path) -> int | None:
    """The entries of the tokenizer in the workdir; None where there is none yet, or more than one recipe's."""
    kept = [path for path in folder.glob("tokenizer-*") if path.suffix != ".partial"]
    kept = [path for path in kept if path.name == START_TOKENIZER] or kept
    if len(kept) != 1:
        return None
    from lmjax.tokenizers.tokenizer import load_tokenizer

    return load_tokenizer(kept[0]).vocab_size
