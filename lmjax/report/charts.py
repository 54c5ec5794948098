"""Line charts of a record, drawn by matplotlib: as PNG files, and as SVG that takes its colours from the page.

In: a `Chart`, which is series of values over steps or over another quantity. Out: SVG markup whose colours are CSS
variables, so that one drawing serves light and dark, and PNG files in the light palette. However long the run, a curve
has at most `POINTS` points.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.notation import decimals, rounded
from lmjax.report.template import visible

POINTS = 300  # of one curve
MARKED = 40  # points up to which each has a marker
CROSSES = 100  # at most, for the values that are not finite
STEP = "step"
ROUND = (1, 2, 2.5, 5, 10)  # distances between ticks, times a power of ten
LARGEST = 1e100  # sizes that an axis can hold with its margins
LOGARITHMIC = 30.0  # a series of positive values whose largest is so many times its smallest gets a logarithmic axis

# Colours by role. Blue and orange differ in lightness too, and validation has markers: no reader needs the hue.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#16191d",
    "muted": "#5b6470",
    "rule": "#dde1e6",
    "wash": "#f4f6f8",
    "first": "#1f5fa8",
    "second": "#c04a12",
    "alarm": "#b3123c",
}
DARK = {
    "paper": "#14171b",
    "ink": "#e7eaee",
    "muted": "#9aa4b0",
    "rule": "#323840",
    "wash": "#1d2127",
    "first": "#74b0f4",
    "second": "#f59a62",
    "alarm": "#ff7d9c",
}

# Sizes in CSS pixels, at which the letters are `LETTER` pixels high.
WIDE, NARROW, COMPACT = (880, 320), (360, 260), (300, 185)
LETTER = 12.0


class Curve(NamedTuple):
    """Means, lowest and highest values around `steps`; NaN where a curve is broken."""

    steps: np.ndarray
    means: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


@dataclass(frozen=True)
class Series:
    """One curve: what it is called, its steps (or what else it is drawn over) and values [N], and its colour's role."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    role: Literal["first", "second"] = "first"
    marked: bool = False  # a marker at every point
    shows_newest: bool = True  # the newest value stands beside the label
    dashed: bool = False

    @property
    def broken(self) -> np.ndarray:
        """The steps whose value is NaN or infinite."""
        return self.steps[~np.isfinite(self.values)]

    @property
    def newest(self) -> str:
        """The last value, written out."""
        value = float(self.values[-1])
        return decimals(value) if self.role == "second" or 0.1 <= abs(value) < 100 else rounded(value)


@dataclass(frozen=True)
class Chart:
    """Series over the steps of a run, or over `across`; `name` is the PNG file's name without its ending."""

    name: str
    title: str
    series: tuple[Series, ...]
    from_zero: bool = False  # the value axis is linear and holds 0
    across: str = STEP  # what the horizontal axis counts

    @property
    def broken(self) -> bool:
        """Whether a value is NaN or infinite."""
        return any(len(series.broken) for series in self.series)


def thinned(steps: np.ndarray, values: np.ndarray, points: int = POINTS) -> Curve:
    """A curve of at most `points` points: consecutive values fall into equal groups, of which mean, lowest and highest
    are kept, so that no spike is lost. Values that are not finite, or that no axis can hold, are left out; a group of
    nothing else is a gap."""
    groups = max(1, min(points, len(values)))
    rows = []
    for s, v in zip(np.array_split(steps, groups), np.array_split(values, groups), strict=True):
        finite = v[np.abs(v) < LARGEST]
        rows.append([s.mean(), *((finite.mean(), finite.min(), finite.max()) if len(finite) else [math.nan] * 3)])
    return Curve(*np.array(rows, np.float64).T)


def svg(chart: Chart, size: tuple[int, int], last_step: int, cls: str) -> str:
    """The chart as an inline SVG element of class `cls`, `size` CSS pixels large unless the page scales it."""
    drawing = _rendered(chart, size, last_step, format="svg", metadata={"Date": None}, transparent=True).decode()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 : drawing.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    own = f"{chart.name}-{cls}-"  # ids belong to the whole page, and every drawing numbers its parts alike
    body = re.sub(r'\bid="|xlink:href="#|url\(#', lambda match: match[0] + own, body)
    for role, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{role})")
    width, height = size
    label = html.escape(visible(described(chart)))
    return f'<svg class="{cls}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>'


def write_png(chart: Chart, folder: Path, last_step: int) -> Path:
    """Writes the chart to NAME.png in `folder`, in the light palette, with title and legend, 1760 pixels wide."""
    path = folder / f"{chart.name}.png"
    path.write_bytes(_rendered(chart, WIDE, last_step, titled=True, format="png", dpi=144, facecolor=LIGHT["paper"]))
    return path


def described(chart: Chart) -> str:
    """The chart in words, for readers who do not see it."""
    return f"{chart.title}: {'; '.join(_ends(series, chart.across) for series in chart.series)}"


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """A tick's label, as exact as the distances between the ticks ask for: 2.905, 1.5e-4, 250k."""
    largest = max(map(abs, ticks), default=0.0)
    scale, suffix = 1.0, ""
    if largest >= 1e4:
        power = min(int(math.log10(largest)) // 3, 4)
        scale, suffix = 1e3**power, ("", "k", "M", "B", "T")[power]
    elif 0 < largest < 1e-2:
        exponent = math.floor(math.log10(largest) + 1e-9)
        scale, suffix = 10.0**exponent, f"e{exponent}"
    if value == 0:
        return "0"
    places = next((n for n in range(6) if all(abs(round(t / scale, n) - t / scale) < 1e-7 for t in ticks)), 6)
    return f"{value / scale:.{places}f}{suffix}"


def _ends(series: Series, across: str) -> str:
    def place(x: float) -> str:
        return f"step {x:,.0f}" if across == STEP else f"{rounded(float(x))} {across}"

    finite = np.isfinite(series.values)
    if not finite.any():
        return f"{series.label} was never finite"
    steps, values = series.steps[finite], series.values[finite]
    first, last = rounded(float(values[0])), rounded(float(values[-1]))
    return f"{series.label} from {first} at {place(steps[0])} to {last} at {place(steps[-1])}"


def _rendered(chart: Chart, size: tuple[int, int], last_step: int, *, titled: bool = False, **save: Any) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the reader's own matplotlibrc says
        mpl.rcParams["font.size"] = LETTER
        mpl.rcParams["svg.fonttype"] = "none"  # text stays text, in the page's font
        mpl.rcParams["svg.hashsalt"] = "lmjax"  # the same record gives the same bytes
        layout = ConstrainedLayoutEngine(w_pad=(14 if titled else 3) / 72, h_pad=(10 if titled else 3) / 72)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout=layout)
        axes = figure.add_subplot()
        for series in chart.series:
            _draw_series(axes, series)
        _draw_axes(axes, chart, size, last_step)
        if titled:
            axes.set_title(chart.title, loc="left", color=LIGHT["ink"])
            if len(chart.series) > 1:
                axes.legend(frameon=False, labelcolor=LIGHT["ink"])
        buffer = io.BytesIO()
        figure.savefig(buffer, **save)
    return buffer.getvalue()


def _draw_series(axes: Any, series: Series) -> None:
    colour = LIGHT[series.role]
    curve = thinned(series.steps, series.values)
    if len(series.values) > POINTS:
        axes.fill_between(curve.steps, curve.lowest, curve.highest, color=colour, alpha=0.25, linewidth=0)
    every = series.marked and len(curve.means) <= MARKED
    dots = np.isfinite(curve.means) if every else _alone(curve.means)
    shown = np.flatnonzero(dots).tolist()
    style: dict[str, Any] = {"linestyle": "--" if series.dashed else "-"}
    if shown:
        style |= {"marker": "o", "markevery": shown, "markersize": 5, "markeredgewidth": 0}
    axes.plot(curve.steps, curve.means, color=colour, linewidth=1.7, label=series.label, clip_on=False, **style)
    broken = series.broken
    if len(broken):
        broken = broken[np.linspace(0, len(broken) - 1, min(len(broken), CROSSES)).round().astype(int)]
        top = axes.get_xaxis_transform()  # steps across, the axes' height up
        axes.plot(
            broken, np.full(len(broken), 0.97), "x", color=LIGHT["alarm"], markersize=6, transform=top, clip_on=False
        )


def _draw_axes(axes: Any, chart: Chart, size: tuple[int, int], last_step: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xlim(*_span(chart, last_step))
    axes.set_xlabel(chart.across, color=LIGHT["muted"])
    places = {"steps": ROUND, "integer": True} if chart.across == STEP else {"steps": ROUND}
    axes.xaxis.set_major_locator(MaxNLocator(max(4, size[0] // 100), **places))
    axes.yaxis.set_major_locator(MaxNLocator(max(4, size[1] // 50), steps=ROUND))
    low, high = _range(chart)
    if math.isnan(low):
        axes.yaxis.set_major_locator(NullLocator())
        axes.text(0.5, 0.5, "no finite value", ha="center", color=LIGHT["muted"], transform=axes.transAxes)
    elif chart.from_zero:
        axes.set_ylim(1.08 * min(0.0, low), 1.08 * max(0.0, high) or 1.0)  # an estimate may be below 0
    elif low > 0 and LOGARITHMIC <= high / low < math.inf:
        margin = (high / low) ** 0.05
        axes.set_yscale("log")
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_labels(axis)))
    axes.tick_params(length=0, pad=5, labelcolor=LIGHT["muted"])
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["muted"])


def _span(chart: Chart, last_step: int) -> tuple[float, float]:
    """The ends of the horizontal axis: of the run, or of what the curves are drawn over."""
    if chart.across == STEP:
        return 0.0, float(max(1, last_step))
    places = np.concatenate([series.steps for series in chart.series])
    places = places[np.abs(places) < LARGEST]
    low, high = (float(places.min()), float(places.max())) if len(places) else (0.0, 1.0)
    margin = 0.02 * (high - low) or 0.5
    return low - margin, high + margin


def _range(chart: Chart) -> tuple[float, float]:
    """Lowest and highest value to be shown; NaN where none is finite. Every line fits in, and so do the bands but for
    one point in a hundred, so that the first steps or a spike do not flatten a run of millions."""
    lows, highs = [], []
    for series in chart.series:
        curve = thinned(series.steps, series.values)
        finite = np.isfinite(curve.means)
        if finite.any():
            means, lowest, highest = curve.means[finite], curve.lowest[finite], curve.highest[finite]
            lows += [means.min(), np.quantile(lowest, 0.01)]
            highs += [means.max(), np.quantile(highest, 0.99)]
    return (float(min(lows)), float(max(highs))) if lows else (math.nan, math.nan)


def _labels(axis: Any) -> Callable[[float, int], str]:
    if axis.get_scale() == "log":
        return lambda value, _: rounded(value)
    return lambda value, _: tick_label(value, axis.get_majorticklocs())


def _alone(values: np.ndarray) -> np.ndarray:
    """True [N] where a value has no finite neighbour, so that no line would show it."""
    finite = np.isfinite(values)
    padded = np.pad(finite, 1)
    return finite & ~padded[:-2] & ~padded[2:]
