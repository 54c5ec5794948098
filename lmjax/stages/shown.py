"""What reports show of a kind of stage: charts, tiles and lists of numbers, as names of what its log holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmjax.data.ramp import BatchRamp
from lmjax.notation import decimals, exact, percent, rounded

TRAINING = "training loss"  # stands for the name that the log has for it


class Drawn(NamedTuple):
    """A chart over steps: the log's names of its curves, what each is called, and whether its points are marked."""

    name: str
    title: str
    curves: tuple[tuple[str, str, bool], ...]
    from_zero: bool = False


class Told(NamedTuple):
    """A number: the log's name for it, what it is called, how it is written, and its unit."""

    metric: str
    label: str
    write: Callable[[float], str] = decimals
    unit: str = ""


def one_curve(name: str, title: str, metric: str, from_zero: bool = False, marked: bool = False) -> Drawn:
    return Drawn(name, title, ((metric, title.lower(), marked),), from_zero)


def two_curves(metric: str, title: str, training: str = "") -> Drawn:
    """A number of the training batches and of the validation data; `training` is the log's name where it differs."""
    return Drawn(metric, title, ((training or metric, "training", False), (f"validation_{metric}", "validation", True)))


LOSS = two_curves("loss", "Loss, nats per token", TRAINING)
RANKED = (two_curves("accuracy", "Pairs in the right order"), two_curves("loss", "Loss, nats per ranking"))
LANGUAGE_TILES = (
    Told("validation_loss", "validation loss", decimals, "nats per token"),
    Told(TRAINING, "training loss", decimals, "nats per token"),
    Told("validation_perplexity", "perplexity", rounded, "validation"),
    Told("bits_per_byte", "bits per byte", lambda value: decimals(value, 3), "validation"),
)
RANKED_TILES = (
    Told("validation_accuracy", "accuracy", percent, "of held-out pairs"),
    Told("held_out_labelers_accuracy", "accuracy", percent, "of held-out labelers\u2019 pairs"),
    Told("validation_loss", "validation loss", decimals, "nats per ranking"),
    Told("calibration_error", "calibration error", lambda value: decimals(value, 3), "validation"),
)
TRAINED = (
    Told("loss", "loss"),
    Told("cross_entropy", "cross-entropy"),
    Told("accuracy", "accuracy", percent),
    Told("margin", "margin of the better answer"),
    Told("grad_norm", "gradient norm", rounded),
    Told("learning_rate", "learning rate", rounded),
)


def rows_text(recipe: Any) -> str:
    """What a step reads: rows of tokens."""
    data = recipe.loading
    first = data.ramp_from or data.batch_size
    rows = exact(data.batch_size) if first == data.batch_size else f"{exact(first)} to {exact(data.batch_size)}"
    return f"{rows} rows of {exact(data.sequence_length)} tokens"


def tokens_seen(recipe: Any, reached: int) -> tuple[int, str]:
    """The tokens of all batches up to a step, padding included."""
    return BatchRamp(recipe.loading).tokens_at(reached), "tokens"


def labelled_text(recipe: Any) -> str:
    """What a step reads: rows of a task, in buckets or of one length."""
    data, least = recipe.loading, min((*recipe.buckets, recipe.loading.sequence_length))
    lengths = exact(data.sequence_length) if not recipe.buckets else f"{exact(least)} to {exact(data.sequence_length)}"
    return f"{exact(data.batch_size)} rows of {lengths} tokens"


def rows_seen(recipe: Any, reached: int) -> tuple[int, str]:
    """The rows of all batches up to a step, those that fill batches up included."""
    return BatchRamp(recipe.loading).rows_at(reached), "rows"


def rankings_text(recipe: Any) -> str:
    """What a step reads: rankings."""
    return f"{exact(recipe.loading.batch_size)} rankings"


def rankings_seen(recipe: Any, reached: int) -> tuple[int, str]:
    """The rankings of all batches up to a step."""
    return BatchRamp(recipe.loading).rows_at(reached), "rankings"


@dataclass(frozen=True)
class Shown:
    """Of one kind of stage. Functions are of its recipe; `seen` of the steps that were taken, too."""

    charts: tuple[Drawn, ...] = (LOSS,)
    tiles: tuple[Told, ...] = LANGUAGE_TILES
    numbers: tuple[Told, ...] = TRAINED
    model: str = ""  # what it is called; "" goes by the family of its settings
    batch: Callable[[Any], str] = rows_text
    seen: Callable[[Any, int], tuple[int, str]] | None = tokens_seen  # how much was trained on, and in what unit
    left_out: Callable[[Any], set[str]] = lambda recipe: set()  # charts that say nothing for this recipe
    own_metrics: bool = False  # whether metrics that no chart names have charts, too: a task may have its own
    state: Callable[[Any, dict[str, Any]], str] | None = None  # of a kind without steps: how far it is, by its summary
    best_of: Callable[[Any], tuple[str, str]] | None = None  # what its best-of-n table is of: start and reward model
