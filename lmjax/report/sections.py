"""What a run's page shows, as plain values for the template run.html.

In: a run's record. Out: texts, and names with values already written out; what the record does not hold is empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lmjax.notation import decimals, duration, exact, percent, rounded, setting
from lmjax.report.charts import COMPACT, NARROW, POINTS, WIDE, Chart, svg
from lmjax.report.measures import measures_values
from lmjax.report.metrics import HELD_OUT, Rows, model_counts, newest, sources_seen, tiles_of, validation_by_source
from lmjax.report.records import RunRecord
from lmjax.settings import ModelSettings
from lmjax.settings.stage import TaskSettings
from lmjax.stages.shown import Told

EARLIER_SAMPLES = 8  # evaluations whose samples are shown below the newest
EVALUATION_ROWS = 20
EVALUATED = (
    Told("validation_loss", "validation loss"),
    Told("validation_perplexity", "perplexity", rounded),
    Told("bits_per_byte", "bits per byte", partial(decimals, places=3)),
    Told("validation_accuracy", "accuracy", percent),
)
EPOCHS = Told("epochs", "epochs", partial(decimals, places=3))
RATES = (
    Told("tokens_per_second", "tokens per second", rounded),
    Told("step_seconds", "time of a step", duration),
    Told("mfu", "MFU", percent),
    Told("input_wait", "waiting for data", percent),
)

Figure = tuple[Chart, list[str]]  # a chart and its drawings
SettingRow = tuple[str, str, bool]  # name, value, and whether it differs from the default


class State(NamedTuple):
    """How far a run or pipeline is; with a `total` that is not reached, the page has a progress bar."""

    done: bool
    text: str
    unit: str = ""
    reached: int = 0
    total: int | None = None


def run_values(run: RunRecord, charts: Sequence[Chart]) -> dict[str, Any]:
    """The values of run.html; `charts` are the run's."""
    trains = run.shown.state is None
    settings = _parts(run.recipe)
    changed = [(part, [row[:2] for row in rows if row[2]]) for part, rows in settings]
    return {
        "kind": f"lmjax {run.stage}",
        "heading": run.recipe.name,
        "lead": shape(run),
        "state": state(run),
        "warnings": warnings(run),
        "trains": trains,
        "tiles": tiles_of(run) if trains and run.lines else [],
        "best_of": [] if trains else best_of(run),
        "measures": measures_values({"value": run.measures}),
        "charts": figures(charts[:1], run.reached, wide=WIDE, narrow=NARROW) + figures(charts[1:], run.reached),
        "points": POINTS,
        "thinned": any(len(series.values) > POINTS for chart in charts for series in chart.series),
        "evaluations": _evaluations(run),
        **_samples(run),
        "numbers": _numbers(run),
        "changed": [(part, rows) for part, rows in changed if rows],
        "recipe_changes": [(exact(step), change) for step, change in run.changes],
        "settings": settings,
        "environment": run.environment,
    }


def shape(run: RunRecord) -> str:
    """The model in a sentence, and where it came from."""
    model = run.model
    kind = run.shown.model or _family(model)
    size = f"{kind} of {rounded(run.counts['parameters'])} parameters" if run.counts else kind
    start = getattr(run.recipe, "start", "")
    begun = f", from {start}" if start else ""
    if model is None:
        return f"{size}{begun}."
    heads, context = model.attention.heads, exact(model.context)
    layers = f"{model.layers} layers"
    if model.encoder_layers is not None:
        layers = f"{model.encoder_layers} and {model.layers} layers"
    return f"{size}{begun}: {layers}, width {exact(model.width)}, {heads} heads, context {context}."


def _family(model: ModelSettings | None) -> str:
    if model is None:
        return "A model"
    if model.encoder_layers is not None:
        return "An encoder-decoder"
    return "A decoder" if model.attention.causal else "An encoder"


def state(run: RunRecord) -> State:
    """How far the run came."""
    if run.shown.state is not None:
        return State(run.done, run.shown.state(run.recipe, run.summary if run.done else {}))
    batch = run.shown.batch(run.recipe)
    if run.done:
        return State(True, f"{exact(run.steps or 0)} steps, each {batch}.")
    of = "" if run.steps is None else f" of {exact(run.steps)}"
    return State(False, f"step {exact(run.reached)}{of}, each {batch}.", "steps", run.reached, run.steps)


def warnings(run: RunRecord) -> list[str]:
    """What a reader must know before the numbers: values that were not finite, steps that were skipped."""
    texts = []
    for name, what in ((run.training_loss, "training loss"), ("validation_loss", "validation loss")):
        steps, values = run.series(name)
        broken = steps[~np.isfinite(values)]
        if len(broken):
            texts.append(
                f"The {what} was not finite in {exact(len(broken))} of {_log_lines(len(steps))}, "
                f"first at step {exact(broken[0])}."
            )
    steps, skipped = run.series("skipped")
    if (skipped > 0).any():
        texts.append(
            f"{_log_lines(int((skipped > 0).sum()))} ended on a skipped step, whose loss or gradient was not finite; "
            f"the first is step {exact(steps[skipped > 0][0])}."
        )
    return texts


def best_of(run: RunRecord) -> list[tuple[str, ...]]:
    """How good the answer is that the reward model prefers among n: n, both rewards and the divergence."""
    rows = run.summary.get("best_of", ())
    return [(exact(r["n"]), decimals(r["gold"]), decimals(r["proxy"]), decimals(r["kl"], 3)) for r in rows]


def figures(charts: Sequence[Chart], last_step: int, **sizes: tuple[int, int]) -> list[Figure]:
    """Each chart with a drawing of each size, by its class; small without sizes."""
    sizes = sizes or {"small": COMPACT}
    return [(chart, [svg(chart, size, last_step, cls) for cls, size in sizes.items()]) for chart in charts]


def _evaluations(run: RunRecord) -> dict[str, Any]:
    """The table of the evaluations, evenly thinned; a number that none of them has gets no column."""
    lines = [line for line in run.lines if "validation_loss" in line]
    if not lines:
        return {}
    shown = _spread(lines, EVALUATION_ROWS)
    numbers = [number for number in EVALUATED if any(number.metric in line for line in shown)]
    steps, losses = run.series(run.training_loss)
    rows = []
    for line in shown:
        before = losses[steps <= line["step"]]
        training = decimals(float(before[-1])) if len(before) else ""
        values = [number.write(line[number.metric]) if number.metric in line else "" for number in numbers]
        rows.append((exact(line["step"]), training, *values))
    return {
        "titles": ["step", "training loss", *(number.label for number in numbers)],
        "rows": rows,
        "extent": f" ({len(shown)} of {exact(len(lines))})" if len(shown) < len(lines) else "",
    }


def _samples(run: RunRecord) -> dict[str, Any]:
    """What the model wrote at the newest evaluation, and at earlier ones, newest first and evenly thinned."""
    steps = sorted(run.samples, reverse=True)
    shown = _spread(steps[1:], EARLIER_SAMPLES)
    texts = [(exact(step), [_sample(line) for line in run.samples[step]]) for step in (*steps[:1], *shown)]
    thinned = len(shown) < len(steps) - 1
    return {
        "samples": texts,
        "samples_extent": f" ({len(shown)} of {exact(len(steps) - 1)} evaluations)" if thinned else "",
    }


def _sample(line: dict[str, Any]) -> tuple[str, str, str]:
    """A prompt, what followed, and what it was worth where that is known."""
    names = (("sample_reward", "reward"), ("sample_gold", "gold reward"))
    worth = [f"{label} {decimals(line[name], 3)}" for name, label in names if name in line]
    return line.get("prompt", ""), line["sample"], ", ".join(worth)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _log_lines(number: int) -> str:
    return "1 line of the log" if number == 1 else f"{exact(number)} lines of the log"


def _numbers(run: RunRecord) -> list[tuple[str, Rows]]:
    """Counts of the model, and the last or typical value of everything that was measured."""
    lists = [("Model", model_counts(run))]
    if run.lines:
        lists += [("Training", _training(run)), ("Validation", _validation(run)), ("Speed", _speed(run))]
        lists += [("Validation by source", validation_by_source(run)), ("Epochs by source", sources_seen(run))]
    return lists


def _training(run: RunRecord) -> Rows:
    seen = [] if run.seen is None else [(run.seen[1], exact(run.seen[0]))]
    return [("recorded up to step", exact(run.reached)), *seen, *newest(run, (*run.shown.numbers, EPOCHS))]


def _validation(run: RunRecord) -> Rows:
    steps, losses = run.series("validation_loss")
    rows: Rows = []
    if len(losses):
        rows.append(("loss", decimals(float(losses[-1]))))
    finite = np.isfinite(losses)
    if finite.any():
        best = int(np.argmin(np.where(finite, losses, np.inf)))
        rows.append(("lowest loss", f"{decimals(float(losses[best]))} at step {exact(steps[best])}"))
    return [*rows, *newest(run, HELD_OUT)]


def _speed(run: RunRecord) -> Rows:
    """Medians over the log: a rate's last value says little."""
    logged = [(number, run.series(number.metric)[1]) for number in RATES]
    rows = [(number.label, number.write(float(np.median(values)))) for number, values in logged if len(values)]
    rows += newest(run, (Told("goodput", "goodput", percent),))
    steps, seconds = run.series("step_seconds")
    if len(steps):
        rows.append(("time in steps, about", duration(float(np.sum(np.diff(steps, prepend=0) * seconds)))))
    return rows


def _parts(recipe: Any) -> list[tuple[str, list[SettingRow]]]:
    """The settings of each part of a recipe, those that are in none under "stage"."""
    parts: dict[str, list[SettingRow]] = {"stage": []}
    for path, value, changed in _settings(recipe):
        part, _, name = path.partition(".")
        if path != "name":
            parts.setdefault(part if name else "stage", []).append((name or path, value, changed))
    return list(parts.items())


def _settings(part: Any, stock: Any = None, prefix: str = "") -> list[SettingRow]:
    """The settings of a recipe or part, by dotted path; `stock` is the part with its default values."""
    rows: list[SettingRow] = []
    for field in dataclasses.fields(part):
        name, value = f"{prefix}{field.name}", getattr(part, field.name)
        default = field.default if stock is None else getattr(stock, field.name)
        kind: Any = type(value)
        if isinstance(value, TaskSettings):
            task = value.plain()
            rows.append((f"{name}.class", task["task"], True))
            rows += [(f"{name}.{key}", setting(plain), True) for key, plain in task["fields"].items()]
        elif dataclasses.is_dataclass(value):
            rows += _settings(value, default if dataclasses.is_dataclass(default) else kind(), f"{name}.")
        else:
            rows += _setting(name, value, default)
    return rows


def _setting(name: str, value: Any, default: Any) -> list[SettingRow]:
    """One row, or one per source."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        places = [f" {i}" for i in range(1, len(value) + 1)] if len(value) > 1 else [""]
        return [(f"{name}{n}", _source(v), value != default) for n, v in zip(places, value, strict=True)]
    return [(name, setting(value), value != default)]


def _source(source: Any) -> str:
    """A source, or a run of several, in one line: kind and path, where it has them, and what differs from defaults."""
    others = [f for f in dataclasses.fields(source) if f.name not in ("kind", "path")]
    given = [(f.name, getattr(source, f.name)) for f in others if getattr(source, f.name) != f.default]
    kind, path = getattr(source, "kind", ""), getattr(source, "path", "")
    place = path if kind == "file" else f"{kind} {path}".strip()
    return ", ".join(filter(None, (place, *(f"{name} {setting(value)}" for name, value in given))))
