"""What the stages log, as the report shows it: charts, tiles and lists of numbers, as lmjax/stages says for each kind.

In: a run's record. Out: charts, and names with values already written out. What a log does not hold is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmjax.notation import decimals, exact, percent, rounded
from lmjax.report.charts import Chart, Series
from lmjax.report.records import RunRecord
from lmjax.run_files import WALL_SECONDS
from lmjax.stages.shown import TRAINING, Drawn, Told, one_curve

Rows = list[tuple[str, str]]  # names and values

EVERYWHERE = (
    one_curve("learning_rate", "Learning rate", "learning_rate", True),
    one_curve("gradient_norm", "Gradient norm", "grad_norm"),
    one_curve("throughput", "Throughput, tokens/s", "tokens_per_second", True),
)
SPEED = ("tokens_per_second", "step_seconds", "mfu", "input_wait", "goodput", "skipped", "epochs")
HELD_OUT = (
    Told("validation_accuracy", "accuracy", percent),
    Told("held_out_labelers_accuracy", "accuracy on held-out labelers", percent),
    Told("calibration_error", "calibration error"),
    Told("validation_reward", "reward"),
    Told("validation_gold", "gold reward"),
    Told("validation_kl", "KL to the start, nats"),
    Told("validation_length", "tokens per response", rounded),
    Told("validation_finished", "ended by themselves", percent),
    Told("validation_perplexity", "perplexity", rounded),
    Told("bits_per_byte", "bits per byte"),
)


def charts_of(run: RunRecord) -> list[Chart]:
    """A chart for each quantity that the log holds, the stage's own first; none for an empty log."""
    charts, left_out = [], run.shown.left_out(run.recipe)
    for name, title, curves, from_zero in (*run.shown.charts, *_own_metrics(run), *EVERYWHERE):
        if name in left_out:
            continue
        series = tuple(
            Series(label, *run.series(_metric(run, metric)), role="second" if marked else "first", marked=marked)
            for metric, label, marked in curves
            if run.last(_metric(run, metric)) is not None
        )
        if series:
            charts.append(Chart(name, title, series, from_zero))
    at = 1 if charts else 0
    charts[at:at] = [*against_divergence(run), *_of_rankings(run)]
    return charts


def _own_metrics(run: RunRecord) -> list[Drawn]:
    """A chart of each metric of a task's own: in training, and in validation under the same name."""
    if not run.shown.own_metrics:
        return []
    named = {metric for chart in (*run.shown.charts, *EVERYWHERE) for metric, *_ in chart.curves}
    names = dict.fromkeys(name.removeprefix("validation_") for name in run.numbers if "/" not in name)
    named |= {"step", "loss", WALL_SECONDS, *SPEED}
    return [
        Drawn(name, name.replace("_", " "), ((name, "training", False), (f"validation_{name}", "validation", True)))
        for name in names
        if name not in named and f"validation_{name}" not in named
    ]


def tiles_of(run: RunRecord) -> list[tuple[str, str, str]]:
    """The handful of numbers that one asks for first: name, value, unit."""
    values = [(number, run.last(_metric(run, number.metric))) for number in run.shown.tiles]
    tiles = [(number.label, number.write(value), number.unit) for number, value in values if value is not None]
    if run.seen is not None:
        amount, unit = run.seen
        tiles.append((unit, rounded(amount), "trained on"))
    _, rates = run.series("tokens_per_second")
    return [*tiles, ("tokens/s", rounded(float(np.median(rates))), "median")] if len(rates) else tiles


def newest(run: RunRecord, numbers: tuple[Told, ...]) -> Rows:
    """The newest value of those of the numbers that the log holds."""
    values = [(number, run.last(number.metric)) for number in numbers]
    return [(number.label, number.write(value)) for number, value in values if value is not None]


def against_divergence(run: RunRecord, best_of: list[dict[str, Any]] | None = None) -> list[Chart]:
    """Gold reward and the reward that was learned from, over the divergence from the start, at the evaluations.

    With `best_of`, best-of-n sampling's table from a comparison, that is the second curve of each.
    """
    kinds = (
        ("gold", "Gold reward over KL", "validation_gold"),
        ("proxy", "Proxy reward over KL", "validation_reward"),
    )
    charts = []
    for key, title, metric in kinds:
        points = [(line["validation_kl"], line[metric]) for line in run.lines if {metric, "validation_kl"} <= set(line)]
        if not points:
            continue
        divergences, values = np.array(points, np.float64).T
        series = [Series(run.recipe.name, divergences, values, marked=True)]
        if best_of:
            divergences, values = np.array([(row["kl"], row[key]) for row in best_of], np.float64).T
            series.append(Series(f"best of {best_of[-1]['n']}", divergences, values, role="second", marked=True))
        charts.append(Chart(f"{key}_over_kl", title, tuple(series), across="nats of KL"))
    return charts


def _of_rankings(run: RunRecord) -> list[Chart]:
    """The newest evaluation's accuracy by the number of answers, and its calibration."""
    charts = []
    sizes = [(size, run.last(f"accuracy_of_{size}")) for size in range(2, 65)]
    known = np.array([(size, value) for size, value in sizes if value is not None], np.float64).reshape(-1, 2).T
    if known.shape[1] > 1:
        series = Series("validation", known[0], known[1], role="second", marked=True)
        charts.append(Chart("accuracy_by_answers", "Accuracy by number of answers", (series,), across="answers"))
    bins = [line["calibration"] for line in run.lines if "calibration" in line]
    if bins and bins[-1]:
        confidence, right, _ = np.array(bins[-1], np.float64).T
        ends = np.array([0.5, 1.0])
        series = Series("in the right order", confidence, right, role="second", marked=True, shows_newest=False)
        ideal = Series("as confident", ends, ends, shows_newest=False)
        charts.append(Chart("calibration", "Calibration of pairs", (ideal, series), across="confidence"))
    return charts


def _metric(run: RunRecord, name: str) -> str:
    return run.training_loss if name == TRAINING else name


def sources_seen(run: RunRecord) -> Rows:
    """How often each source of a mixture has been seen."""
    sources = run.recipe.loading.train
    seen = [(source, run.last(f"epochs/{i}")) for i, source in enumerate(sources)]
    return [(source.path or source.kind, decimals(share, 3)) for source, share in seen if share is not None]


def validation_by_source(run: RunRecord) -> Rows:
    """The newest numbers of each source of a validation set that has several."""
    loss = Told("validation_loss", "loss", decimals)
    return [
        (f"{number.label}, {source}", number.write(value))
        for number in (loss, *HELD_OUT)
        for source, value in run.of_sources(number.metric).items()
    ]


def model_counts(run: RunRecord) -> Rows:
    """Parameters and FLOPs."""
    counts = run.counts
    if not counts:
        return [("parameters", "known once there is a tokenizer")]
    rows: Rows = [
        ("parameters", exact(counts["parameters"])),
        ("embeddings", exact(counts["embedding_parameters"])),
        ("non-embedding", exact(counts["non_embedding_parameters"])),
        ("FLOPs per token", rounded(counts["flops_per_token"])),
        ("FLOPs per token as 6N", rounded(counts["flops_per_token_6n"])),
    ]
    amount, unit = run.seen or (0, "")
    if unit == "tokens":
        rows.append(("training FLOPs so far", rounded(counts["flops_per_token"] * amount)))
    return rows
