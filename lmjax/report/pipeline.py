"""The parts of a pipeline's page: its stages in order, what reward costs in divergence, samples side by side, curves.

In: the records of the stages. Out: markup of each part, or None to be left out; what a single run's page has, too, is
made by the same functions.
"""

from __future__ import annotations

import dataclasses
from urllib.parse import quote

from lmjax.notation import exact
from lmjax.report import sections
from lmjax.report.charts import Chart
from lmjax.report.markup import Html, element, joined
from lmjax.report.metrics import against_divergence, charts_of, tiles_of
from lmjax.report.parts import half_figures, section, small_figures
from lmjax.report.records import PipelineRecord, RunRecord

TOLD = 3  # numbers of a stage that stand beside its name


def header(pipeline: PipelineRecord) -> Html:
    """What the stages are, in a sentence, and how many are done."""
    done = sum(run.done for run in pipeline.begun)
    count = len(pipeline.stages)
    state = "Done: " if done == count else "Not finished: "
    bar = None if done == count else element("progress", value=done, max=count, aria_label="stages done")
    said = element("p", element("b", state), f"{exact(done)} of {exact(count)} stages.")
    return joined(
        (
            element("p", "lmjax pipeline", cls="kind"),
            element("h1", pipeline.folder.resolve().name),
            element("p", " \u2192 ".join(pipeline.stages), cls="lead"),
            element("div", said, bar, cls="state done" if done == count else "state"),
        )
    )


def warnings(pipeline: PipelineRecord) -> Html | None:
    """What a reader must know of each stage before its numbers."""
    found = [(run.recipe.name, sections.warnings(run)) for run in pipeline.begun]
    parts = [element("div", element("h3", name), what) for name, what in found if what is not None]
    return joined(parts) if parts else None


def stages(pipeline: PipelineRecord) -> Html:
    """Each stage with how far it came and its first numbers; its name leads to its own report."""
    items = [element("li", *_stage(name, run)) for name, run in pipeline.stages.items()]
    return section("Stages", element("ol", *items, cls="stages"))


def _stage(name: str, run: RunRecord | None) -> tuple[Html, ...]:
    if run is None:
        return element("h3", name), element("p", element("b", "Not begun."), cls="state")
    link = element("a", name, href=f"{quote(name)}/report.html")
    told = [f"{label} {value} {unit}" for label, value, unit in tiles_of(run)[:TOLD]] if run.lines else []
    numbers = element("p", "; ".join(told), cls="told") if told else None
    heading = element("h3", link, " ", element("small", run.stage if run.stage != name else ""))
    shown = element("p", sections.shape(run), cls="note"), sections.state(run), numbers
    return heading, *(part for part in shown if part is not None)


def divergence_charts(pipeline: PipelineRecord) -> list[Chart]:
    """Gold and proxy reward over the divergence of each policy, with best-of-n sampling beside it where recorded."""
    charts: list[Chart] = []
    for run in pipeline.begun:
        made = against_divergence(run, pipeline.best_of(run))
        charts += [dataclasses.replace(chart, name=f"{run.recipe.name}-{chart.name}") for chart in made]
    return charts


def divergence(charts: list[Chart]) -> Html | None:
    if not charts:
        return None
    text = (
        "The gold reward is the known one that labelers judge by; the proxy is what the policy learned from. "
        "KL is the policy\u2019s divergence from where it started, in nats per response."
    )
    return section("Reward over divergence", element("p", text, cls="note"), half_figures(charts, 1))


def best_of(pipeline: PipelineRecord) -> Html | None:
    """Best-of-n sampling's table, of the last comparison that has one."""
    tables = [table for run in pipeline.begun if (table := sections.best_of_table(run)) is not None]
    return tables[-1] if tables else None


def samples(pipeline: PipelineRecord) -> Html | None:
    """What each stage wrote last, prompt by prompt."""
    written: dict[str, list[Html]] = {}
    for run in pipeline.begun:
        if run.samples and (prompts := run.recipe.evaluation.prompts):
            newest = run.samples[max(run.samples)]
            for prompt, line in zip(prompts, newest, strict=False):  # those of the recipe come first
                cell = element("div", element("h4", run.recipe.name), sections.sample(line))
                written.setdefault(prompt, []).append(cell)
    if not written:
        return None
    grids = [
        element("div", element("h3", prompt), element("div", *cells, cls="beside"), cls="prompt")
        for prompt, cells in written.items()
    ]
    note = element("p", "The newest of each stage. What it was given is underlined; the rest is its own.", cls="note")
    return section("Samples", note, *grids)


def curves(pipeline: PipelineRecord) -> Html | None:
    """The charts of each stage."""
    parts = []
    for run in pipeline.begun:
        charts = [c for c in charts_of(run) if not c.name.endswith("_over_kl")]
        charts = [dataclasses.replace(chart, name=f"{run.recipe.name}-{chart.name}") for chart in charts]
        if charts:
            parts += [element("h3", run.recipe.name, cls="of"), small_figures(charts, run.reached)]
    return section("Curves", *parts) if parts else None


def environment(pipeline: PipelineRecord) -> Html | None:
    """Of the newest stage."""
    known = [run for run in pipeline.begun if run.environment]
    return sections.environment(known[-1]) if known else None
