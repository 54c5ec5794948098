"""Accuracy over the number of shots, a panel for each set of questions, as in Brown et al. 2020, figure 2.1.

In: what a table of marks has for each set and number of shots. Out: a PNG file. Bars are standard errors; a model that
was trained on the set is a dashed line, guessing a dotted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.report.figures import BLUE, INK, MUTED, ORANGE, new_figure, style, write_figure

PANEL = 2.9, 2.5  # inches
LEGEND = 4.2, 0.35
COLUMNS = 4


class Mark(NamedTuple):
    """The mean and its standard error of a set with so many shots; `trained`: of the model that was trained on it."""

    task: str
    measure: str
    shots: int
    value: float
    error: float
    guessed: float | None = None  # what guessing gives
    trained: bool = False


def write_shots(path: Path, marks: Sequence[Mark]) -> None:
    """Raises UserError where the file cannot be written."""
    write_figure(path, lambda: drawn(marks))


def drawn(marks: Sequence[Mark]) -> Any:
    """The figure: its panels are in the order in which the sets come."""
    tasks = list(dict.fromkeys(mark.task for mark in marks))
    columns = min(len(tasks), COLUMNS)
    rows = math.ceil(len(tasks) / columns)
    figure = new_figure((max(columns * PANEL[0], LEGEND[0]), rows * PANEL[1] + LEGEND[1]))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, task in zip(panels, tasks, strict=False):
        _draw(axes, [mark for mark in marks if mark.task == task])
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw(axes: Any, marks: Sequence[Mark]) -> None:
    own = sorted((mark for mark in marks if not mark.trained), key=lambda mark: mark.shots)
    shots = [mark.shots for mark in own]
    axes.set_title(marks[0].task)
    axes.set(xlabel="shots", ylabel=marks[0].measure)
    axes.errorbar(
        range(len(own)),
        [mark.value for mark in own],
        [0.0 if math.isnan(mark.error) else mark.error for mark in own],
        **{"color": BLUE, "marker": "o", "markersize": 4, "capsize": 2, "label": "in context"},
    )
    axes.set_xticks(range(len(own)), [str(count) for count in shots])
    for mark in marks:
        if mark.trained:
            axes.axhline(mark.value, color=ORANGE, linestyle="--", label="fine-tuned")
    if marks[0].guessed is not None:
        axes.axhline(marks[0].guessed, color=MUTED, linestyle=":", label="guessing")
    axes.yaxis.label.set_color(INK)
    axes.margins(0.1, 0.15)
    style(axes)
