"""Prints the most likely tokens of each step of a completion as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax.generate.decode import Completion


def print_alternatives(completion: Completion, texts: list[str], console: Console | None = None) -> None:
    """One row per generated token: its text and probability, then the most likely tokens and their percentages."""
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("token")
    table.add_column("chosen", justify="right")
    for rank in range(len(completion.alternatives[0]) if completion.alternatives else 0):
        table.add_column(f"#{rank + 1}")
    for text, log_prob, pairs in zip(texts, completion.log_probs, completion.alternatives, strict=True):
        cells = [Text(f"{_visible(other)} {share:.1%}") for other, share in pairs]
        table.add_row(Text(_visible(text), style="bold"), f"{2.718281828459045**log_prob:.1%}", *cells)
    (console or Console()).print(table)


def _visible(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "\N{OPEN BOX}")
