"""What a search shows while it compiles: a bar with the candidate and the time left, or plain lines without a terminal.

It writes to a copy of standard error, because the compiler's own noise is kept from that stream while it works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lmjax.plan.candidates import Candidate
from lmjax.plan.search import Show


@contextmanager
def watching(total: int, seconds: float, console: Console | None = None) -> Iterator[Show]:
    """Gives the function that a search calls when it begins a candidate, of at most `total` in so many seconds."""
    with os.fdopen(os.dup(2), "w") as stream:
        console = console or Console(file=stream)
        bar = Progress(
            *(BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)),
            *(TextColumn("{task.fields[left]}", style="cyan"), TimeElapsedColumn()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        task = bar.add_task("", total=total, left="")
        clock = _Clock(total, seconds)

        def show(done: int, candidate: Candidate, cached: bool) -> None:
            left = clock.left(done, cached)
            bar.update(task, completed=done, total=max(total, done + 1), description=candidate.text, left=left)
            if not console.is_terminal:
                verb = "compiled earlier:" if cached else "compiling"
                line = f"{done + 1}/{max(total, done + 1)} {verb} {candidate.text}  {left}"
                console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

        with bar:
            yield show


class _Clock:
    """How long is left, from what the candidates that were compiled took; those from the cache take no time."""

    def __init__(self, total: int, seconds: float) -> None:
        self.total, self.spent, self.compiled = total, 0.0, 0
        self.end = time.monotonic() + seconds
        self.begun: float | None = None

    def left(self, done: int, cached: bool) -> str:
        """In words, when `done` are done and another begins; "" before one was compiled."""
        now = time.monotonic()
        if self.begun is not None:
            self.spent, self.compiled = self.spent + now - self.begun, self.compiled + 1
        self.begun = None if cached else now
        if not self.compiled:
            return ""
        needed = self.spent / self.compiled * max(self.total - done, 1)
        seconds = int(min(needed, max(self.end - now, 0.0)))
        return f"{seconds // 60}:{seconds % 60:02d} left"
