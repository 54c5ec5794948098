"""The parts of the report's page, each a function of the run's record that gives its markup, or None to be left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.report.charts import COMPACT, NARROW, POINTS, WIDE, Chart, Series, svg
from lmjax.report.markup import Html, element, joined
from lmjax.report.notation import decimals, duration, exact, percent, rounded, setting
from lmjax.report.reading import RunRecord
from lmjax.settings import SourceSettings

Rows = list[tuple[str, object]]  # names and values; a value may be markup

EARLIER_SAMPLES = 8  # evaluations whose samples are shown below the newest
EVALUATION_ROWS = 20


def header(run: RunRecord) -> Html:
    """What was trained, in a sentence, and how far it came."""
    model, data = run.recipe.model, run.recipe.data
    size = f"A decoder of {rounded(run.counts['parameters'])} parameters" if run.counts else "A decoder"
    shape = (
        f"{model.layers} layers, width {exact(model.width)}, {model.attention.heads} heads, "
        f"context {exact(model.context)}"
    )
    first = data.ramp_from or data.batch_size
    rows = exact(data.batch_size) if first == data.batch_size else f"{exact(first)} to {exact(data.batch_size)}"
    batch = f"{rows} rows of {exact(data.sequence_length)} tokens"
    steps = run.recipe.train.steps
    if run.done:
        state = element("p", element("b", "Done: "), f"{exact(steps)} steps, each {batch}.", cls="state done")
    else:
        state = element(
            "div",
            element("p", element("b", "Not finished: "), f"step {exact(run.reached)} of {exact(steps)}, each {batch}."),
            element("progress", value=run.reached, max=steps, aria_label="steps done"),
            cls="state",
        )
    return joined(
        (
            element("p", f"lmjax {run.stage}", cls="kind"),
            element("h1", run.recipe.name),
            element("p", f"{size}: {shape}.", cls="lead"),
            state,
        )
    )


def warnings(run: RunRecord) -> Html | None:
    """What a reader must know before the numbers: values that were not finite, steps that were skipped."""
    found = []
    for name, what in ((run.training_loss, "training loss"), ("validation_loss", "validation loss")):
        steps, values = run.series(name)
        broken = steps[~np.isfinite(values)]
        if len(broken):
            found.append(
                f"The {what} was not finite in {exact(len(broken))} of {_lines(len(steps))}, "
                f"first at step {exact(broken[0])}."
            )
    steps, skipped = run.series("skipped")
    if (skipped > 0).any():
        found.append(
            f"{_lines(int((skipped > 0).sum()))} ended on a skipped step, whose loss or gradient was not finite; "
            f"the first is step {exact(steps[skipped > 0][0])}."
        )
    return element("ul", *(element("li", text) for text in found), cls="warnings") if found else None


def highlights(run: RunRecord) -> Html | None:
    """The handful of numbers that one asks for first."""
    if not run.lines:
        return element("p", "Nothing has been recorded yet.", cls="empty")
    loss, validation = run.last(run.training_loss), run.last("validation_loss")
    perplexity, bits = run.last("validation_perplexity"), run.last("bits_per_byte")
    _, rates = run.series("tokens_per_second")
    tiles = [
        ("validation loss", validation is not None and decimals(validation), "nats per token"),
        ("training loss", loss is not None and decimals(loss), "nats per token"),
        ("perplexity", perplexity is not None and rounded(perplexity), "validation"),
        ("bits per byte", bits is not None and decimals(bits, 3), "validation"),
        ("tokens", rounded(run.tokens), "trained on"),
        ("tokens/s", len(rates) and rounded(float(np.median(rates))), "median"),
    ]
    return element("dl", *(_tile(name, str(value), unit) for name, value, unit in tiles if value), cls="tiles")


def curves(run: RunRecord, charts: Sequence[Chart]) -> Html | None:
    """The charts, the first one large, and the evaluations as a table."""
    if not charts:
        return None
    first, *others = charts
    large = svg(first, WIDE, run.reached, "wide"), svg(first, NARROW, run.reached, "narrow")
    small = [_figure(chart, svg(chart, COMPACT, run.reached, "small")) for chart in others]
    thick = any(len(series.values) > POINTS for chart in charts for series in chart.series)
    text = f"A line shows means of consecutive values, {POINTS} in all; its band goes from the lowest to the highest."
    note = element("p", text, cls="note") if thick else None
    return _section("Curves", note, _figure(first, *large), element("div", *small, cls="charts"), _evaluations(run))


def charts_of(run: RunRecord) -> list[Chart]:
    """A chart for each quantity that the log holds; none for an empty log."""
    wanted = [
        (
            "loss",
            "Loss, nats per token",
            ((run.training_loss, "training", False), ("validation_loss", "validation", True)),
            False,
        ),
        ("learning_rate", "Learning rate", (("learning_rate", "learning rate", False),), True),
        ("gradient_norm", "Gradient norm", (("grad_norm", "gradient norm", False),), False),
        ("throughput", "Throughput, tokens/s", (("tokens_per_second", "tokens per second", False),), True),
    ]
    charts = []
    for name, title, curves, from_zero in wanted:
        found = tuple(
            Series(label, *run.series(metric), role="second" if marked else "first", marked=marked)
            for metric, label, marked in curves
            if run.last(metric) is not None
        )
        if found:
            charts.append(Chart(name, title, found, from_zero))
    return charts


def samples(run: RunRecord) -> Html | None:
    """What the model wrote at the newest evaluation, and below it how that came to be."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in run.lines:
        if "sample" in line:
            by_step.setdefault(line["step"], []).append(line)
    if not by_step:
        return None
    newest, *earlier = sorted(by_step, reverse=True)
    shown = _spread(earlier, EARLIER_SAMPLES)
    some = f" ({len(shown)} of {exact(len(earlier))} evaluations)" if len(shown) < len(earlier) else ""
    before = [joined((element("h3", f"Step {exact(step)}"), _texts(by_step[step]))) for step in shown]
    return _section(
        "Samples",
        element("p", f"Step {exact(newest)}. The prompt is underlined; the rest is the model\u2019s.", cls="note"),
        _texts(by_step[newest]),
        _details(f"Earlier samples{some}", *before) if before else None,
    )


def numbers(run: RunRecord) -> Html:
    """Counts of the model, and the last or typical value of everything that was measured."""
    counts = run.counts
    if counts:
        model: Rows = [
            ("parameters", exact(counts["parameters"])),
            ("embeddings", exact(counts["embedding_parameters"])),
            ("non-embedding", exact(counts["non_embedding_parameters"])),
            ("FLOPs per token", rounded(counts["flops_per_token"])),
            ("FLOPs per token as 6N", rounded(counts["flops_per_token_6n"])),
            ("training FLOPs so far", rounded(counts["flops_per_token"] * run.tokens)),
        ]
    else:
        model = [("parameters", "known once there is a tokenizer")]
    groups: list[tuple[str, Rows]] = [("Model", model)]
    if run.lines:
        groups += [("Training", _training(run)), ("Validation", _validation(run)), ("Speed", _speed(run))]
        groups += [("Epochs by source", _epochs(run))]
    return _section("Numbers", _groups(groups))


def recipe(run: RunRecord) -> Html:
    """The settings that differ from their defaults, part by part, and below them every one."""
    stock = type(run.recipe)()
    parts = [f.name for f in dataclasses.fields(stock) if dataclasses.is_dataclass(getattr(stock, f.name))]
    settings = [(name, _settings(getattr(run.recipe, name), getattr(stock, name))) for name in parts]
    changed = [(name, [(row, value) for row, value, is_default in rows if not is_default]) for name, rows in settings]
    every = [(n, [(row, v if is_default else element("b", v)) for row, v, is_default in rows]) for n, rows in settings]
    flag = element("code", "--part.name value")
    what = "The settings that differ from their defaults" if any(rows for _, rows in changed) else "All as by default"
    note = element("p", f"{what}; ", flag, " on the command line.", cls="note")
    details = _details(f"All {sum(len(rows) for _, rows in every)} settings", _groups(every))
    return _section("Recipe", note, _groups(changed), details)


def environment(run: RunRecord) -> Html | None:
    """Versions and devices."""
    if not run.environment:
        return None
    return _section("Environment", _groups([("", list(run.environment.items()))]))


def _section(title: str, *content: object) -> Html:
    anchor = title.lower()
    return element("section", element("h2", title, id=anchor), *content, aria_labelledby=anchor)


def _details(summary: str, *content: object) -> Html:
    return element("details", element("summary", summary), *content)


def _tile(name: str, value: str, unit: str) -> Html:
    return element("div", element("dt", name), element("dd", value, " ", element("small", unit)))


def _groups(groups: Sequence[tuple[str, Rows]]) -> Html:
    """Lists of names and values, each under a heading where it has one; an empty list is left out."""
    lists = []
    for title, rows in groups:
        pairs = (element("div", element("dt", name), element("dd", value)) for name, value in rows)
        heading = element("h3", title) if title else None
        lists += [element("div", heading, element("dl", *pairs), cls="group")] if rows else []
    return element("div", *lists, cls="groups")


def _figure(chart: Chart, *drawings: Html) -> Html:
    """Drawings under a title and, for each curve, its key and newest value."""
    keys = []
    for series in chart.series:
        name = joined((element("i", cls=series.role), series.label, " ")) if len(chart.series) > 1 else None
        keys.append(element("span", name, element("b", _newest(series)), cls="key"))
    if any(len(series.broken) for series in chart.series):
        keys.append(element("span", element("b", "\u00d7", cls="alarm"), " not finite", cls="key"))
    return element("figure", element("figcaption", element("h3", chart.title), *keys), *drawings, cls="plot")


def _newest(series: Series) -> str:
    value = float(series.values[-1])
    return decimals(value) if series.role == "second" or 0.1 <= abs(value) < 100 else rounded(value)


def _evaluations(run: RunRecord) -> Html | None:
    lines = [line for line in run.lines if "validation_loss" in line]
    if not lines:
        return None
    shown = _spread(lines, EVALUATION_ROWS)
    steps, losses = run.series(run.training_loss)
    rows = []
    for line in shown:
        before = losses[steps <= line["step"]]
        cells = (
            exact(line["step"]),
            decimals(float(before[-1])) if len(before) else "",
            decimals(line["validation_loss"]),
            rounded(line["validation_perplexity"]) if "validation_perplexity" in line else "",
            decimals(line["bits_per_byte"], 3) if "bits_per_byte" in line else "",
        )
        rows.append(element("tr", element("th", cells[0], scope="row"), *(element("td", cell) for cell in cells[1:])))
    titles = ("step", "training loss", "validation loss", "perplexity", "bits per byte")
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    table = element("table", element("thead", head), element("tbody", *rows))
    note = f" ({len(shown)} of {exact(len(lines))})" if len(shown) < len(lines) else ""
    return _details(f"Evaluations{note}", element("div", table, cls="scroll"))


def _texts(lines: Sequence[dict[str, Any]]) -> Html:
    """Prompts and what followed, in the direction of their script."""
    return joined(
        element("p", element("u", line.get("prompt", "")), line["sample"], cls="sample", dir="auto") for line in lines
    )


def _training(run: RunRecord) -> Rows:
    rows: Rows = [("recorded up to step", exact(run.reached)), ("tokens", exact(run.tokens))]
    for name, label in (("loss", "loss"), ("cross_entropy", "cross-entropy"), ("accuracy", "accuracy")):
        value = run.last(name)
        if value is not None:
            rows.append((label, percent(value) if name == "accuracy" else decimals(value)))
    for name, label in (("grad_norm", "gradient norm"), ("learning_rate", "learning rate")):
        value = run.last(name)
        if value is not None:
            rows.append((label, rounded(value)))
    whole = run.last("epochs")
    return rows if whole is None else [*rows, ("epochs", decimals(whole, 3))]


def _epochs(run: RunRecord) -> Rows:
    """How often each source of a mixture has been seen."""
    seen = [(source, run.last(f"epochs/{i}")) for i, source in enumerate(run.recipe.data.train)]
    return [(source.path or source.kind, decimals(share, 3)) for source, share in seen if share is not None]


def _validation(run: RunRecord) -> Rows:
    steps, losses = run.series("validation_loss")
    if not len(losses):
        return []
    rows: Rows = [("loss", decimals(float(losses[-1])))]
    finite = np.isfinite(losses)
    if finite.any():
        best = int(np.argmin(np.where(finite, losses, np.inf)))
        rows.append(("lowest loss", f"{decimals(float(losses[best]))} at step {exact(steps[best])}"))
    perplexity, bits = run.last("validation_perplexity"), run.last("bits_per_byte")
    if perplexity is not None:
        rows.append(("perplexity", rounded(perplexity)))
    if bits is not None:
        rows.append(("bits per byte", decimals(bits)))
    return rows


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


def _settings(part: Any, stock: Any, prefix: str = "") -> list[tuple[str, object, bool]]:
    """Name, value and whether it is the default, of a part's settings; those of parts inside have dotted names."""
    rows: list[tuple[str, object, bool]] = []
    for field in dataclasses.fields(part):
        name, value, default = f"{prefix}{field.name}", getattr(part, field.name), getattr(stock, field.name)
        if dataclasses.is_dataclass(value):
            rows += _settings(value, default, f"{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], SourceSettings):
            numbers = [f" {i}" for i in range(1, len(value) + 1)] if len(value) > 1 else [""]
            rows += [(f"{name}{n}", _source(v), value == default) for n, v in zip(numbers, value, strict=True)]
        else:
            rows.append((name, setting(value), value == default))
    return rows


def _source(source: SourceSettings) -> str:
    """A source in one line: kind and path, and what else differs from the defaults."""
    others = [f for f in dataclasses.fields(source) if f.name not in ("kind", "path")]
    given = [(f.name, getattr(source, f.name)) for f in others if getattr(source, f.name) != f.default]
    place = f"{source.kind} {source.path}".strip()
    return ", ".join((place, *(f"{name} {setting(value)}" for name, value in given)))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _lines(number: int) -> str:
    return "1 line of the log" if number == 1 else f"{exact(number)} lines of the log"
