"""What a pipeline's page shows, as plain values for the template pipeline.html.

In: the records of the stages. Out: the stages in order, what reward costs in divergence, samples side by side, curves.
What the records do not hold is empty.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmjax.evaluate.measures import Measure
from lmjax.notation import exact
from lmjax.report.charts import NARROW, Chart
from lmjax.report.measures import measures_values
from lmjax.report.metrics import against_divergence, charts_of, tiles_of
from lmjax.report.records import PipelineRecord, RunRecord
from lmjax.report.sections import Figure, State, best_of, figures, shape, state, warnings

TILES = 3  # numbers of a stage that stand beside its name


def pipeline_values(pipeline: PipelineRecord, charts: list[Chart]) -> dict[str, Any]:
    """The values of pipeline.html; `charts` are those over divergence."""
    runs = pipeline.begun
    done, count = sum(run.done for run in runs), len(pipeline.stages)
    text = f"{exact(done)} of {exact(count)} stages."
    tables = [table for run in runs if (table := best_of(run))]
    environments = [run.environment for run in runs if run.environment]
    return {
        "kind": "lmjax pipeline",
        "heading": pipeline.folder.resolve().name,
        "lead": " \u2192 ".join(pipeline.stages),
        "state": State(True, text) if done == count else State(False, text, "stages", done, count),
        "warnings": [(run.recipe.name, texts) for run in runs if (texts := warnings(run))],
        "stages": [_stage(name, run) for name, run in pipeline.stages.items()],
        "measures": measures_values(_measured(pipeline)),
        "divergence": figures(charts, 1, small=NARROW),
        "best_of": tables[-1] if tables else [],
        "samples": _samples(runs),
        "curves": [(run.recipe.name, drawn) for run in runs if (drawn := _curves(run))],
        "environment": environments[-1] if environments else {},
    }


def _measured(pipeline: PipelineRecord) -> dict[str, list[Measure]]:
    """The measures of the model that the pipeline begins with, where it is none of its own, and of each stage's."""
    return {"initial checkpoint": pipeline.measures} | {run.recipe.name: run.measures for run in pipeline.begun}


def divergence_charts(pipeline: PipelineRecord) -> list[Chart]:
    """Gold and proxy reward over the divergence of each policy, with best-of-n sampling beside it where recorded."""
    return [
        chart for run in pipeline.begun for chart in _named_after(run, against_divergence(run, pipeline.best_of(run)))
    ]


def _stage(name: str, run: RunRecord | None) -> dict[str, Any]:
    """A stage with how far it came and its first numbers."""
    if run is None:
        return {"name": name, "begun": False}
    tiles = tiles_of(run)[:TILES] if run.lines else []
    return {
        "name": name,
        "begun": True,
        "kind": run.stage if run.stage != name else "",
        "shape": shape(run),
        "state": state(run),
        "numbers": "; ".join(f"{label} {value} {unit}" for label, value, unit in tiles),
    }


def _samples(runs: list[RunRecord]) -> dict[str, list[tuple[str, tuple[str, str]]]]:
    """What each stage wrote last, by the recipe's prompt: the stage, the prompt as it was given, and what followed."""
    written: dict[str, list[tuple[str, tuple[str, str]]]] = {}
    for run in runs:
        if run.samples and (prompts := run.recipe.evaluation.prompts):
            newest = run.samples[max(run.samples)]
            for prompt, line in zip(prompts, newest, strict=False):  # those of the recipe come first
                written.setdefault(prompt, []).append((run.recipe.name, (line.get("prompt", ""), line["sample"])))
    return written


def _curves(run: RunRecord) -> list[Figure]:
    """The charts of a stage, but for those that the pipeline has of its own."""
    charts = [chart for chart in charts_of(run) if not chart.name.endswith("_over_kl")]
    return figures(_named_after(run, charts), run.reached)


def _named_after(run: RunRecord, charts: list[Chart]) -> list[Chart]:
    return [dataclasses.replace(chart, name=f"{run.recipe.name}-{chart.name}") for chart in charts]
