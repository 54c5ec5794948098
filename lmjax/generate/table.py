"""Prints the most likely tokens in the place of each token of a text as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

Alternatives = Sequence[Sequence[tuple[str, float]]]  # of each token, texts and probabilities, the likeliest first


def print_alternatives(
    texts: Sequence[str], log_probs: Sequence[float], alternatives: Alternatives, console: Console | None = None
) -> None:
    """Prints one row per token: its text and probability, then the most likely tokens with percentages.

    The alternatives are in columns if the console is wide enough, and otherwise below each other; a star marks the one
    that is the token.
    """
    console = console or Console()
    side_by_side = _table(texts, log_probs, alternatives, stacked=False)
    width = console.measure(side_by_side, options=console.options.update(max_width=100_000)).maximum
    console.print(side_by_side if width <= console.width else _table(texts, log_probs, alternatives, stacked=True))


def _table(texts: Sequence[str], log_probs: Sequence[float], alternatives: Alternatives, stacked: bool) -> Table:
    ranks = len(alternatives[0]) if alternatives else 0
    table = Table(header_style="bold", pad_edge=False, show_lines=stacked)
    table.add_column("token", overflow="fold")
    table.add_column("chosen", justify="right", no_wrap=True)
    for name in ["most likely"] if stacked else [f"#{rank + 1}" for rank in range(ranks)]:
        table.add_column(name, overflow="fold")
    for text, log_prob, pairs in zip(texts, log_probs, alternatives, strict=True):
        likeliest = [f"{_visible(token)} {share:.1%}{' *' if token == text else ''}" for token, share in pairs]
        cells = [Text("\n".join(likeliest))] if stacked else [Text(cell) for cell in likeliest]
        table.add_row(Text(_visible(text), style="bold"), f"{math.exp(log_prob):.1%}", *cells)
    return table


def _visible(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "\N{OPEN BOX}")
