"""The parts of a run's page, each a function of its record that gives its markup, or None to be left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.notation import decimals, duration, exact, percent, rounded, setting
from lmjax.report.charts import POINTS, Chart
from lmjax.report.markup import Html, element, joined
from lmjax.report.metrics import (
    HELD_OUT,
    last_training,
    model_counts,
    sources_seen,
    tiles_of,
    told,
    validation_by_source,
)
from lmjax.report.parts import (
    Rows,
    details,
    groups,
    large_figure,
    log_lines,
    section,
    small_figures,
    spread,
    table,
    tiles,
)
from lmjax.report.records import RunRecord
from lmjax.settings.stage import TaskSettings

EARLIER_SAMPLES = 8  # evaluations whose samples are shown below the newest
EVALUATION_ROWS = 20


def header(run: RunRecord) -> Html:
    """What was trained, in a sentence, and how far it came."""
    return joined(
        (
            element("p", f"lmjax {run.stage}", cls="kind"),
            element("h1", run.recipe.name),
            element("p", shape(run), cls="lead"),
            state(run),
        )
    )


def shape(run: RunRecord) -> str:
    """The model in a sentence, and where it came from."""
    kind, model = run.shown.model, run.model
    size = f"{kind} of {rounded(run.counts['parameters'])} parameters" if run.counts else kind
    start = getattr(run.recipe, "start", "")
    begun = f", from {start}" if start else ""
    if model is None:
        return f"{size}{begun}."
    heads, context = model.attention.heads, exact(model.context)
    return f"{size}{begun}: {model.layers} layers, width {exact(model.width)}, {heads} heads, context {context}."


def state(run: RunRecord) -> Html:
    """How far the run came."""
    if run.shown.state is not None:
        said = run.shown.state(run.recipe, run.summary if run.done else {})
        return element("p", element("b", "Done: " if run.done else "Not finished: "), said, cls="state")
    each = f", each {run.shown.batch(run.recipe)}."
    if run.done:
        return element("p", element("b", "Done: "), f"{exact(run.steps or 0)} steps{each}", cls="state done")
    of = "" if run.steps is None else f" of {exact(run.steps)}"
    bar = None if run.steps is None else element("progress", value=run.reached, max=run.steps, aria_label="steps done")
    return element(
        "div", element("p", element("b", "Not finished: "), f"step {exact(run.reached)}{of}{each}"), bar, cls="state"
    )


def warnings(run: RunRecord) -> Html | None:
    """What a reader must know before the numbers: values that were not finite, steps that were skipped."""
    found = []
    for name, what in ((run.training_loss, "training loss"), ("validation_loss", "validation loss")):
        steps, values = run.series(name)
        broken = steps[~np.isfinite(values)]
        if len(broken):
            found.append(
                f"The {what} was not finite in {exact(len(broken))} of {log_lines(len(steps))}, "
                f"first at step {exact(broken[0])}."
            )
    steps, skipped = run.series("skipped")
    if (skipped > 0).any():
        found.append(
            f"{log_lines(int((skipped > 0).sum()))} ended on a skipped step, whose loss or gradient was not finite; "
            f"the first is step {exact(steps[skipped > 0][0])}."
        )
    return element("ul", *(element("li", text) for text in found), cls="warnings") if found else None


def highlights(run: RunRecord) -> Html | None:
    """The handful of numbers that one asks for first."""
    if run.shown.state is not None:
        return best_of_table(run)
    if not run.lines:
        return element("p", "Nothing has been recorded yet.", cls="empty")
    return tiles(tiles_of(run))


def best_of_table(run: RunRecord) -> Html | None:
    """How good the answer is that the proxy prefers among n."""
    rows = run.summary.get("best_of")
    if not rows:
        return None
    titles = ("best of", "gold reward", "proxy reward", "nats of KL")
    cells = [(exact(r["n"]), decimals(r["gold"]), decimals(r["proxy"]), decimals(r["kl"], 3)) for r in rows]
    note = element("p", "The answer that the reward model prefers among n samples, on average.", cls="note")
    return section("Best of n", note, table(titles, cells))


def curves(run: RunRecord, charts: Sequence[Chart]) -> Html | None:
    """The charts, the first one large, and the evaluations as a table."""
    if not charts:
        return None
    first, *others = charts
    thick = any(len(series.values) > POINTS for chart in charts for series in chart.series)
    text = f"A line shows means of consecutive values, {POINTS} in all; its band goes from the lowest to the highest."
    note = element("p", text, cls="note") if thick else None
    drawn = large_figure(first, run.reached), small_figures(others, run.reached)
    return section("Curves", note, *drawn, _evaluations(run))


def samples(run: RunRecord) -> Html | None:
    """What the model wrote at the newest evaluation, and below it how that came to be."""
    by_step = run.samples
    if not by_step:
        return None
    newest, *earlier = sorted(by_step, reverse=True)
    shown = spread(earlier, EARLIER_SAMPLES)
    some = f" ({len(shown)} of {exact(len(earlier))} evaluations)" if len(shown) < len(earlier) else ""
    before = [joined((element("h3", f"Step {exact(step)}"), _texts(by_step[step]))) for step in shown]
    return section(
        "Samples",
        element("p", f"Step {exact(newest)}. The prompt is underlined; the rest is the model\u2019s.", cls="note"),
        _texts(by_step[newest]),
        details(f"Earlier samples{some}", *before) if before else None,
    )


def numbers(run: RunRecord) -> Html:
    """Counts of the model, and the last or typical value of everything that was measured."""
    lists: list[tuple[str, Rows]] = [("Model", model_counts(run))]
    if run.lines:
        lists += [("Training", _training(run)), ("Validation", _validation(run)), ("Speed", _speed(run))]
        lists += [("Validation by source", validation_by_source(run)), ("Epochs by source", sources_seen(run))]
    return section("Numbers", groups(lists))


def recipe(run: RunRecord) -> Html:
    """The settings that differ from their defaults, part by part, and below them every one."""
    settings = [(name, rows) for name, rows in _parts(run.recipe) if rows]
    changed = [(name, [(row, value) for row, value, is_default in rows if not is_default]) for name, rows in settings]
    every = [(n, [(row, v if is_default else element("b", v)) for row, v, is_default in rows]) for n, rows in settings]
    flag = element("code", "--part.name value")
    what = "The settings that differ from their defaults" if any(rows for _, rows in changed) else "All as by default"
    note = element("p", f"{what}; ", flag, " on the command line.", cls="note")
    shown = details(f"All {sum(len(rows) for _, rows in every)} settings", groups(every))
    return section("Recipe", note, groups(changed), _changes(run), shown)


def _changes(run: RunRecord) -> Html | None:
    """What changed in the recipe between two runs of the workdir."""
    if not run.changes:
        return None
    items = [element("li", f"after step {exact(step)}: ", element("code", told)) for step, told in run.changes]
    return joined((element("h3", "Changed on the way"), element("ul", *items)))


def environment(run: RunRecord) -> Html | None:
    """Versions and devices."""
    if not run.environment:
        return None
    return section("Environment", groups([("", list(run.environment.items()))]))


def _evaluations(run: RunRecord) -> Html | None:
    lines = [line for line in run.lines if "validation_loss" in line]
    if not lines:
        return None
    shown = spread(lines, EVALUATION_ROWS)
    steps, losses = run.series(run.training_loss)
    rows = []
    for line in shown:
        before = losses[steps <= line["step"]]
        rows.append(
            (
                exact(line["step"]),
                decimals(float(before[-1])) if len(before) else "",
                decimals(line["validation_loss"]),
                rounded(line["validation_perplexity"]) if "validation_perplexity" in line else "",
                decimals(line["bits_per_byte"], 3) if "bits_per_byte" in line else "",
                percent(line["validation_accuracy"]) if "validation_accuracy" in line else "",
            )
        )
    titles = ["step", "training loss", "validation loss", "perplexity", "bits per byte", "accuracy"]
    kept = [column for column in range(len(titles)) if column < 3 or any(row[column] for row in rows)]
    made = table([titles[c] for c in kept], [[row[c] for c in kept] for row in rows])
    note = f" ({len(shown)} of {exact(len(lines))})" if len(shown) < len(lines) else ""
    return details(f"Evaluations{note}", made)


def _texts(lines: Sequence[dict[str, Any]]) -> Html:
    """Prompts and what followed, in the direction of their script, and what it was worth where that is known."""
    return joined(joined((sample(line), _worth(line))) for line in lines)


def sample(line: dict[str, Any]) -> Html:
    """A prompt and what followed."""
    return element("p", element("u", line.get("prompt", "")), line["sample"], cls="sample", dir="auto")


def _worth(line: dict[str, Any]) -> Html | None:
    names = (("sample_reward", "reward"), ("sample_gold", "gold reward"))
    known = [f"{label} {decimals(line[name], 3)}" for name, label in names if name in line]
    return element("p", ", ".join(known), cls="note worth") if known else None


def _training(run: RunRecord) -> Rows:
    rows: Rows = [("recorded up to step", exact(run.reached))]
    if run.seen is not None:
        count, what = run.seen
        rows.append((what, exact(count)))
    whole = run.last("epochs")
    return [*rows, *last_training(run), *([] if whole is None else [("epochs", decimals(whole, 3))])]


def _validation(run: RunRecord) -> Rows:
    steps, losses = run.series("validation_loss")
    rows: Rows = []
    if len(losses):
        rows.append(("loss", decimals(float(losses[-1]))))
    finite = np.isfinite(losses)
    if finite.any():
        best = int(np.argmin(np.where(finite, losses, np.inf)))
        rows.append(("lowest loss", f"{decimals(float(losses[best]))} at step {exact(steps[best])}"))
    return [*rows, *told(run, HELD_OUT)]


def _speed(run: RunRecord) -> Rows:
    """Medians over the log: a rate's last value says little."""
    rows: Rows = []
    for name, label, write in (
        ("tokens_per_second", "tokens per second", rounded),
        ("step_seconds", "time of a step", duration),
        ("mfu", "MFU", percent),
        ("input_wait", "waiting for data", percent),
    ):
        _, values = run.series(name)
        if len(values):
            rows.append((label, write(float(np.median(values)))))
    goodput = run.last("goodput")
    if goodput is not None:
        rows.append(("goodput", percent(goodput)))
    steps, seconds = run.series("step_seconds")
    if len(steps):
        rows.append(("time in steps, about", duration(float(np.sum(np.diff(steps, prepend=0) * seconds)))))
    return rows


def _parts(recipe: Any) -> list[tuple[str, list[tuple[str, object, bool]]]]:
    """The settings of each part of a recipe, those that are in none under "stage"."""
    own: list[tuple[str, object, bool]] = []
    parts = []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, TaskSettings):
            task = value.plain()
            rows = [(name, setting(own), False) for name, own in task["fields"].items()]
            parts.append((field.name, [("class", task["task"], False), *rows]))
        elif dataclasses.is_dataclass(value):
            stock = field.default if dataclasses.is_dataclass(field.default) else _stock(value)
            parts.append((field.name, _settings(value, stock)))
        elif field.name != "name":
            own += _setting(field.name, value, field.default)
    return [("stage", own), *parts]


def _stock(part: Any) -> Any:
    return type(part)()


def _settings(part: Any, stock: Any, prefix: str = "") -> list[tuple[str, object, bool]]:
    """Name, value and whether it is the default, of a part's settings; those of parts inside have dotted names."""
    rows: list[tuple[str, object, bool]] = []
    for field in dataclasses.fields(part):
        name, value, default = f"{prefix}{field.name}", getattr(part, field.name), getattr(stock, field.name)
        if dataclasses.is_dataclass(value):
            rows += _settings(value, default, f"{name}.")
        else:
            rows += _setting(name, value, default)
    return rows


def _setting(name: str, value: Any, default: Any) -> list[tuple[str, object, bool]]:
    """One row, or one per source."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        places = [f" {i}" for i in range(1, len(value) + 1)] if len(value) > 1 else [""]
        return [(f"{name}{n}", _source(v), value == default) for n, v in zip(places, value, strict=True)]
    return [(name, setting(value), value == default)]


def _source(source: Any) -> str:
    """A source in one line: kind and path, and what else differs from the defaults."""
    others = [f for f in dataclasses.fields(source) if f.name not in ("kind", "path")]
    given = [(f.name, getattr(source, f.name)) for f in others if getattr(source, f.name) != f.default]
    place = source.path if source.kind == "file" else f"{source.kind} {source.path}".strip()
    return ", ".join((place, *(f"{name} {setting(value)}" for name, value in given)))
