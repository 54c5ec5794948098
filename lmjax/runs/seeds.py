"""One stage with several seeds: a run of each in a folder of its own, and the mean and deviation of what they measure.

A result of fine-tuning on few examples differs more between seeds than between many methods (Devlin et al. 2018,
section 4.1; Mosbach et al. 2021): one run says little.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmjax.checkpoints.evaluated import worth
from lmjax.errors import require
from lmjax.files import user_path, write_whole
from lmjax.parallel import processes
from lmjax.runs.run import Result, run
from lmjax.settings import Pipeline, Stage, TrainingStage
from lmjax.training.record import read_metrics

SEEDS_FILE = "seeds.json"


def run_seeds(
    recipe: Stage | Pipeline, seeds: Sequence[int], workdir: Path | str | None = None, **options: Any
) -> Result:
    """Runs the stage once for each seed, in `workdir`/seed-N, and prints and writes what was measured over all of them.

    The same call resumes. `options` are those of `lmjax.run`. A stop ends the run that it meets, and starts no other.
    Raises UserError for a pipeline, or for seeds of which one is repeated.
    """
    require(isinstance(recipe, TrainingStage), "--seeds", list(seeds), "a recipe of one stage that trains", "drop it")
    assert isinstance(recipe, TrainingStage)
    different = len(set(seeds)) == len(seeds) and len(seeds) > 0
    require(different, "--seeds", list(seeds), "different whole numbers", "name each once")
    folder = user_path(workdir) if workdir is not None else Path("runs") / recipe.name
    measured: dict[int, dict[str, float]] = {}
    for seed in seeds:
        result = run(with_seed(recipe, seed), folder / f"seed-{seed}", **options)
        if result.signal is not None:
            return dataclasses.replace(result, workdir=folder)
        measured[seed] = validation_numbers(folder / f"seed-{seed}", recipe)
    summary = summarised(measured)
    if processes.is_first():
        write_whole(folder / SEEDS_FILE, json.dumps({"seeds": measured, "summary": summary}, indent=1) + "\n")
        print_summary(summary, len(seeds), Console())
    return Result(folder, None, {"seeds": measured, "summary": summary})


def with_seed(stage: TrainingStage, seed: int) -> TrainingStage:
    """The stage with this seed for what is drawn in training, fresh parameters included, and for the order of rows."""
    rows = dataclasses.replace(getattr(stage, stage.rows_field), seed=seed)
    train = dataclasses.replace(stage.train, seed=seed)
    return dataclasses.replace(stage, train=train, **{stage.rows_field: rows})


def validation_numbers(folder: Path, stage: TrainingStage) -> dict[str, float]:
    """What the last evaluation of a run measured; with checkpoint.select_best, what the best one did."""
    lines = [line for line in read_metrics(folder) if stage.checkpoint.best_by in line]
    require(bool(lines), "evaluation", str(folder), "one with validation data", "name a validation source")
    by = stage.checkpoint.best_by
    line = max(reversed(lines), key=lambda line: worth({by: line[by]})) if stage.checkpoint.select_best else lines[-1]
    return {name: float(value) for name, value in line.items() if name.startswith("validation_")}


def summarised(measured: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, sample standard deviation (0 for one seed), least and greatest of each number that all runs have."""
    runs = list(measured.values())
    names = [name for name in runs[0] if all(name in own for own in runs)]
    return {name: _of([own[name] for own in runs]) for name in names}


def _of(values: Sequence[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "least": min(values), "greatest": max(values)}


def print_summary(summary: dict[str, dict[str, float]], count: int, console: Console) -> None:
    """A row for each number: its mean over so many seeds with the deviation, and its extremes."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in (f"over {count} seeds", "mean ± deviation", "least", "greatest"):
        table.add_column(heading, justify="left" if heading.startswith("over") else "right")
    for name, of in summary.items():
        words = name.removeprefix("validation_").replace("_", " ")
        row = (f"{of['mean']:.4f} ± {of['deviation']:.4f}", f"{of['least']:.4f}", f"{of['greatest']:.4f}")
        table.add_row(words, *row)
    console.print(table)
