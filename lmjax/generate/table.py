"""Prints the most likely tokens of each step of a completion as a table."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax.generate.decode import Completion


def print_alternatives(completion: Completion, texts: list[str], console: Console | None = None) -> None:
    """Prints one row per generated token: its text and probability, then the most likely tokens with percentages.

    The alternatives are in columns if the console is wide enough, and otherwise below each other.
    """
    console = console or Console()
    side_by_side = _table(completion, texts, stacked=False)
    width = console.measure(side_by_side, options=console.options.update(max_width=100_000)).maximum
    console.print(side_by_side if width <= console.width else _table(completion, texts, stacked=True))


def _table(completion: Completion, texts: list[str], stacked: bool) -> Table:
    ranks = len(completion.alternatives[0]) if completion.alternatives else 0
    table = Table(header_style="bold", pad_edge=False, show_lines=stacked)
    table.add_column("token", overflow="fold")
    table.add_column("chosen", justify="right", no_wrap=True)
    for name in ["most likely"] if stacked else [f"#{rank + 1}" for rank in range(ranks)]:
        table.add_column(name, overflow="fold")
    for text, log_prob, pairs in zip(texts, completion.log_probs, completion.alternatives, strict=True):
        alternatives = [f"{_visible(token)} {probability:.1%}" for token, probability in pairs]
        cells = [Text("\n".join(alternatives))] if stacked else [Text(cell) for cell in alternatives]
        table.add_row(Text(_visible(text), style="bold"), f"{math.exp(log_prob):.1%}", *cells)
    return table


def _visible(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "\N{OPEN BOX}")
