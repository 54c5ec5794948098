"""What a run shows on the terminal: a live line with loss, speed and time left, or plain lines where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.text import Text

PLAIN_EVERY = 10.0  # seconds between plain lines
_VISIBLE = {"\x1b": "\N{SYMBOL FOR ESCAPE}", "\r": "\N{SYMBOL FOR CARRIAGE RETURN}"}


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("numbers", ""), style="cyan")


class ProgressDisplay:
    """A run's lines on the terminal, and a live bar between `start` and `finish`; silent in processes other than 0."""

    def __init__(self, *, silent: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(quiet=silent)
        self._live = self._console.is_terminal and not silent
        self._bar: Progress | None = None
        self._title, self._steps = "", 0
        self._printed = -PLAIN_EVERY
        self._began = (0.0, 0)  # when and at which step

    def start(self, title: str, steps: int, first: int) -> None:
        """Shows that steps `first` to `steps` of `title` are about to run."""
        self._title, self._steps = title, steps
        self._began = (time.monotonic(), first)
        if not self._live:
            return
        columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), _Numbers())
        self._bar = Progress(*columns, TimeLeftColumn(elapsed_when_finished=True), console=self._console)
        self._bar.add_task(title, total=steps, completed=first)
        self._bar.start()

    def finish(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, values: dict[str, Any]) -> None:
        """The numbers of a step that has been logged."""
        numbers = describe(values)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
        now = time.monotonic()
        if not self._live and (now - self._printed >= PLAIN_EVERY or step == self._steps):
            self._printed = now
            self.say(f"{self._title} {step}/{self._steps}  {numbers}{self._left(now, step)}")

    @contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to call with how many documents are done, and how many there are; it shows them."""
        bar = Progress(
            *(TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn()),
            TimeLeftColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        task = bar.add_task(title, total=None)
        printed = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal printed
            bar.update(task, completed=done, total=total)
            if not self._live and time.monotonic() - printed >= PLAIN_EVERY:
                printed = time.monotonic()
                self.say(f"{title} {done:,}/{total:,} documents")

        with bar:
            yield show

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Shows that `title` is running, and for how long, where the share that is done is unknown."""
        if self._bar is not None:  # a terminal has one live display at a time
            self._bar.update(self._bar.task_ids[0], numbers=title)
            yield
            self._bar.update(self._bar.task_ids[0], numbers="")
            return
        columns = (TextColumn("{task.description}", markup=False), SpinnerColumn("line"), TimeElapsedColumn())
        bar = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        bar.add_task(title, total=None)
        began, over = time.monotonic(), threading.Event()

        def lines() -> None:
            while not over.wait(PLAIN_EVERY):
                self.say(f"{title}: {time.monotonic() - began:.0f} s")

        thread = threading.Thread(target=lines, daemon=True)
        try:
            with bar:
                if not self._live:
                    thread.start()
                yield
        finally:
            over.set()
            if not self._live:
                thread.join()

    def say(self, text: str) -> None:
        """A line above the bar, letter by letter: no markup, no emoji codes, no control characters of the terminal."""
        encoding = self._console.encoding
        shown = "".join(c if c.isprintable() or c in "\n\t" else _VISIBLE.get(c, "\ufffd") for c in text)
        self._console.print(Text(shown.encode(encoding, "replace").decode(encoding)), soft_wrap=True)

    def _left(self, now: float, step: int) -> str:
        began, first = self._began
        if step <= first or step == self._steps:
            return ""
        seconds = (now - began) / (step - first) * (self._steps - step)
        return f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"


def describe(values: dict[str, Any]) -> str:
    """One line of the numbers that matter: loss, tokens per second, MFU or else step time."""
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4f}")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    elif "step_seconds" in values:
        parts.append(f"{values['step_seconds'] * 1000:,.0f} ms/step")
    if values.get("skipped"):
        parts.append(f"{values['skipped']:.0f} steps skipped: not finite")
    return "  ".join(parts)
