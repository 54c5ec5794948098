"""Measures of the models of a pipeline, made when a stage ends: written into its folder, and made once.

In: a pipeline's settings of measures, a stage that is done or a checkpoint. Out: `measures.json`, which reports show.
All processes of a run take part, for a model may be cut over all their devices; the first one writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmjax.bucket import located
from lmjax.checkpoints.digests import DIGESTS_FILE
from lmjax.checkpoints.initial import found_checkpoint, recipe_of
from lmjax.checkpoints.remote_workdir import share
from lmjax.errors import clear_disk_errors
from lmjax.evaluate.measures import Measure, Measured
from lmjax.evaluate.sets import SETS
from lmjax.fields import placed
from lmjax.files import read_json_if_there, user_path, write_whole
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.processes import barrier, is_first
from lmjax.report.page import write_report
from lmjax.run_files import MEASURES_FILE, SUMMARY_FILE
from lmjax.runs.agreement import ABSENT, files_digest
from lmjax.runs.evaluate import Reader
from lmjax.runs.hhh import ENDINGS, Suite, measure, measure_rewards
from lmjax.runs.question_sets import Asked, examine
from lmjax.settings import MeasureSettings, MeshSettings, Pipeline, Stage
from lmjax.settings.stage import naming
from lmjax.stages.registry import kind_of
from lmjax.training.stop import StopRequest


@dataclass(frozen=True)
class Measuring:
    """Measures the models of one pipeline in its workdir. `say` tells what is done."""

    pipeline: Pipeline
    folder: Path
    stop: StopRequest
    say: Callable[[str], None]

    def check(self) -> None:
        """Raises UserError for unknown tasks, absent files and tables of another form, before anything is trained."""
        settings = self.pipeline.measures
        if settings is not None:
            with placed("measures"):
                asked = asked_of(settings)
            if asked is not None:
                for name in asked.sets:
                    SETS[name].rows(asked.folder)
            if settings.suite:
                suite_of(settings).read()

    def start(self) -> None:
        """Measures the checkpoint that the pipeline begins with, where it is none of its own."""
        first, names = self.pipeline.stages[0], {stage.name for stage in self.pipeline.stages}
        if self.pipeline.measures is not None and first.start and first.start not in names:
            self._measure(self.pipeline.measures, located(first.start), self.folder, first.mesh, f"start {first.start}")

    def after(self, stage: Stage, own: Path) -> None:
        """Measures what a stage that is done has trained; of a stage that trains no model, nothing."""
        kind = kind_of(stage)
        trained = kind.train is not None and kind.one_model and (own / SUMMARY_FILE).is_file()
        if self.pipeline.measures is not None and trained:
            with naming(stage):
                self._measure(self.pipeline.measures, own, own, stage.mesh, stage.name)

    def _measure(self, settings: MeasureSettings, checkpoint: Path, own: Path, mesh: MeshSettings, name: str) -> None:
        path = own / MEASURES_FILE
        made_from = _made_from(settings, checkpoint)
        before = read_json_if_there(path, Measured, "delete the file; it is made again")
        if before is not None and _same(before["made_from"], made_from):
            return
        self.say(f"{name}: measured by {' and '.join([settings.suite, *settings.tasks])} in {settings.data}")
        found = []
        for each in measures_of(settings, checkpoint, mesh):
            found.append(each.plain())
            self.stop.check()
        if is_first():
            measured: Measured = {"made_from": made_from, "measures": found}
            write_whole(path, json.dumps(measured, indent=2))
            if own != self.folder:  # the pipeline's report is written when it ends
                write_report(own)
        barrier("measured")
        share(own)


def measures_of(settings: MeasureSettings, checkpoint: Path, mesh: MeshSettings) -> Iterator[Measure]:
    """The measures of a checkpoint: of a language model all, of a reward model how it orders the suite's rankings."""
    read, asked = suite_of(settings).read() if settings.suite else None, asked_of(settings)
    if _recipe(checkpoint).scores:
        for part in measure_rewards(checkpoint, read.rankings, make_mesh(mesh)) if read else ():
            yield from part.measures
        return
    reader = Reader(checkpoint, mesh)
    for part in measure(reader, read) if read else ():
        yield from part.measures
    for marks, _ in examine(reader, asked) if asked else ():
        way, mean = next(iter(marks.means.items()))
        yield Measure(marks.task, way, f"{marks.shots} shots" if marks.shots else "all", mean, marks.questions)


def suite_of(settings: MeasureSettings) -> Suite:
    return Suite(user_path(settings.data), settings.limit)


def asked_of(settings: MeasureSettings) -> Asked | None:
    """The tasks; None where there are none. Raises UserError for an unknown one."""
    if not settings.tasks:
        return None
    return Asked(settings.tasks, user_path(settings.data), (settings.shots,), settings.limit)


def measured_paths(recipe: Stage | Pipeline) -> list[str]:
    """The files and folders that the measures of a recipe read."""
    settings = recipe.measures if isinstance(recipe, Pipeline) else None
    return [] if settings is None else [str(Path(settings.data) / name) for name in _files(settings)]


def _files(settings: MeasureSettings) -> list[str]:
    """In the folder of the sets."""
    suite = list(ENDINGS) if settings.suite else []
    tasks = [SETS[name] for name in settings.tasks if name in SETS]
    files = [file for own in tasks for file in (own.file, own.pool) if file]
    return [*suite, *files]


def _made_from(settings: MeasureSettings, checkpoint: Path) -> dict[str, str]:
    """What the measures follow from: where one of it is another, they are made again."""
    with clear_disk_errors(checkpoint):
        found = found_checkpoint(checkpoint)
        digests = found.path / DIGESTS_FILE
        kept = hashlib.sha256(digests.read_bytes()).hexdigest() if digests.is_file() else ""
    data = {name: files_digest(str(Path(settings.data) / name)) for name in _files(settings)}
    own = dataclasses.asdict(settings) | {"data": ""}
    return {"settings": json.dumps(own), "checkpoint": f"step {found.step} {kept}".strip(), **data}


def _same(before: dict[str, str], now: dict[str, str]) -> bool:
    """Data that are not there any more have not changed."""
    return before == {name: before.get(name, "") if value == ABSENT else value for name, value in now.items()}


def _recipe(checkpoint: Path) -> Stage:
    with clear_disk_errors(checkpoint):
        return recipe_of(found_checkpoint(checkpoint))
