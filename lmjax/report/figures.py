"""Figures of their own beside a run's charts: one look, drawn by matplotlib into PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.files import write_whole

INK, MUTED, RULE, BLUE, ORANGE, GREEN = "#16191d", "#5b6470", "#dde1e6", "#1f5fa8", "#c04a12", "#2e7d4f"
DPI = 90


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))


def png_of(draw: Callable[[], Any]) -> bytes:
    """The figure that `draw` gives."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the reader's own matplotlibrc says
        mpl.rcParams["font.size"] = 9
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png")
    return buffer.getvalue()


def write_figure(path: Path, draw: Callable[[], Any]) -> None:
    """Writes the figure as PNG. Raises UserError where the file cannot be written."""
    try:
        write_whole(path, png_of(draw))
    except OSError as error:
        raise UserError(
            f"--plot {path}: cannot be written ({error.strerror}); name a file in another folder"
        ) from error


def style(axes: Any) -> None:
    """Gives axes of matplotlib, whose contents are drawn, the look of all figures."""
    axes.set_title(axes.get_title(), loc="center", color=INK)
    axes.tick_params(which="both", length=0, labelcolor=MUTED)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
