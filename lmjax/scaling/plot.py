"""A fit as one PNG of four panels: loss over compute with the frontier, IsoFLOP curves, N_opt and D_opt, residuals.

In: a table, the results of one or more methods, and rows that were held out. Out: a file. A panel for which the methods
give nothing says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.report.figures import BLUE, GREEN, INK, MUTED, ORANGE, RULE, new_figure, style, write_figure
from lmjax.scaling.bootstrap import LEVEL
from lmjax.scaling.counting import counting
from lmjax.scaling.result import Result
from lmjax.scaling.table import Table

POINTS = 120  # of a curve
BEYOND = 10.0  # times the largest compute, to which curves are extrapolated
MOST_PROFILES = 7
FEWEST_ROWS = 4  # of a profile
SIZE = (11.5, 8.5)  # inches


def write_plot(path: Path, table: Table, results: Sequence[Result], held_out: Table | None = None) -> None:
    """Draws the panels into a PNG file. Raises UserError where it cannot be written."""
    write_figure(path, lambda: drawn(table, results, held_out))


def drawn(table: Table, results: Sequence[Result], held_out: Table | None = None) -> Any:
    """The figure of the four panels."""
    figure = new_figure(SIZE)
    ((losses, profiles), (optima, residuals)) = figure.subplots(2, 2)
    _draw_losses(figure, losses, table, results, held_out)
    _draw_profiles(profiles, table, results)
    _draw_optima(optima, table, results)
    _draw_residuals(residuals, results, held_out)
    for axes in (losses, profiles, optima, residuals):
        style(axes)
    return figure


def _fitted(results: Sequence[Result]) -> Result | None:
    """The result of approach 3."""
    return next((result for result in results if result.fit is not None), None)


def _draw_losses(figure: Any, axes: Any, table: Table, results: Sequence[Result], held_out: Table | None) -> None:
    from matplotlib.colors import LogNorm

    axes.set_title("loss over compute, and the frontier")
    axes.set(xlabel="C [FLOPs]", ylabel="loss", xscale="log")
    norm = LogNorm(table.params.min(), table.params.max() * (1 + 1e-9))
    dots = axes.scatter(
        table.flops, table.loss, c=table.params, norm=norm, cmap="viridis", s=14, linewidths=0, zorder=3
    )
    figure.colorbar(dots, ax=axes, label="N [parameters]", pad=0.01, aspect=30).outline.set_visible(False)
    if held_out is not None:
        axes.scatter(held_out.flops, held_out.loss, marker="x", c=ORANGE, s=20, label="held out", zorder=4)
    result = _fitted(results)
    if result is not None and result.fit is not None:
        (inside, beyond), how = _computes(table), counting(table)
        axes.plot(inside, how.frontier(inside, result.fit)[2], color=INK, label="frontier (approach 3)")
        axes.plot(beyond, how.frontier(beyond, result.fit)[2], color=INK, linestyle="--", label="extrapolated")
        if result.sampled is not None:
            every = np.concatenate([inside, beyond])
            loss_CS = how.frontier(every[:, None], result.sampled)[2]
            known_S = np.isfinite(loss_CS).all(axis=0)
            if known_S.any():
                low, high = np.quantile(loss_CS[:, known_S], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
                axes.fill_between(every, low, high, color=MUTED, alpha=0.25, linewidth=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _draw_profiles(axes: Any, table: Table, results: Sequence[Result]) -> None:
    from matplotlib import colormaps

    axes.set_title("IsoFLOP curves")
    axes.set(xlabel="N [parameters]", ylabel="loss", xscale="log")
    budgets = [budget for budget in np.unique(table.budget) if _is_profile(table.take(table.budget == budget))]
    if not budgets:
        _say(axes, f"no budget has {FEWEST_ROWS} runs of three sizes")
        return
    shown = np.unique(np.linspace(0, len(budgets) - 1, min(len(budgets), MOST_PROFILES)).round().astype(int))
    result, how = _fitted(results), counting(table)
    for number, budget in enumerate(np.array(budgets)[shown]):
        rows = table.take(table.budget == budget)
        colour = colormaps["viridis"](0.9 * number / max(1, len(shown) - 1))
        axes.scatter(rows.params, rows.loss, color=colour, s=14, linewidths=0, label=f"{budget:.2g}")
        N = np.geomspace(rows.params.min() / 1.2, rows.params.max() * 1.2, POINTS)
        if result is not None and result.fit is not None:
            C = np.exp(np.log(rows.flops).mean())
            loss = result.fit.loss(N, how.tokens(C, N))
        else:
            loss = np.polyval(np.polyfit(np.log(rows.params), rows.loss, 2), np.log(N))
        axes.plot(N, loss, color=colour, linewidth=1)
    for result in results:
        minima = result.points[np.isin(result.points[:, 0], np.array(budgets)[shown])]
        if len(minima):
            label = f"minimum, {result.method}"
            axes.plot(minima[:, 1], minima[:, 3], "D", color=ORANGE, markersize=5, markerfacecolor="none", label=label)
    lows, highs = table.loss.min(), np.quantile(table.loss[np.isin(table.budget, np.array(budgets)[shown])], 0.98)
    axes.set_ylim(lows - 0.05 * (highs - lows), highs + 0.6 * (highs - lows))  # room for the legend
    axes.legend(frameon=False, title="C [FLOPs]", fontsize=8, ncols=3, loc="upper center")


def _is_profile(rows: Table) -> bool:
    return len(rows) >= FEWEST_ROWS and len(np.unique(rows.params)) >= 3


def _draw_optima(axes: Any, table: Table, results: Sequence[Result]) -> None:
    axes.set_title("compute-optimal N and D")
    axes.set(xlabel="C [FLOPs]", ylabel="N [parameters], D [tokens]", xscale="log", yscale="log")
    (inside, beyond), how = _computes(table), counting(table)
    markers = iter((("D", ORANGE), ("s", GREEN)))
    for result in results:
        a = result.values.get("a", np.nan)
        if result.fit is not None:
            for computes, style in ((inside, "-"), (beyond, ":")):
                optimum, a = how.frontier(computes, result.fit), float(how.exponent(result.fit))
                for index, name in enumerate("ND"):
                    label = (
                        f"{name}, {result.method}, {'ab'[index]} = {(a, 1 - a)[index]:.3f}" if style == "-" else None
                    )
                    colour = (BLUE, MUTED)[index]
                    axes.plot(computes, optimum[index], style, color=colour, label=label)
        elif len(result.points):
            marker, colour = next(markers)
            C, N, D, _ = result.points.T
            label = f"{result.method}, a = {a:.3f}"
            axes.plot(C, N, marker, color=colour, markersize=5, label=f"N, {label}")
            axes.plot(
                C,
                D,
                marker,
                color=colour,
                markersize=5,
                markerfacecolor="none",
                label=f"D, {label[:-9]}b = {result.values['b']:.3f}",
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    else:
        _say(axes, "none of these methods gives an optimum")


def _draw_residuals(axes: Any, results: Sequence[Result], held_out: Table | None) -> None:
    axes.set_title("residuals")
    axes.set(xlabel="C [FLOPs]", ylabel="log(prediction / loss) [%]", xscale="log")
    axes.axhline(0, color=MUTED, linewidth=1)
    shown = _fitted(results) or next((result for result in results if len(result.residuals)), None)
    if shown is None:
        _say(axes, "this method has no prediction of a run's loss")
        return
    axes.set_title(f"residuals of {shown.method}")
    axes.scatter(shown.table.flops, 100 * shown.residuals, color=BLUE, s=12, linewidths=0)
    if held_out is not None and shown.fit is not None:
        errors = 100 * np.log(shown.fit.loss(held_out.params, held_out.tokens) / held_out.loss)
        axes.scatter(held_out.flops, errors, marker="x", color=ORANGE, s=20, label="held out")
        axes.legend(edgecolor=RULE)


def _computes(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Computes within the table's, and beyond."""
    low, high = table.flops.min(), table.flops.max()
    return np.geomspace(low, high, POINTS), np.geomspace(high, BEYOND * high, POINTS)


def _say(axes: Any, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", color=MUTED, transform=axes.transAxes)
