"""Stopping on request: what SIGTERM and SIGINT do while a run is prepared, and while it trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """Raised by a signal where nothing has to be saved."""


class StopRequest:
    """A context manager; inside it `signal` is the number of the first SIGTERM or SIGINT, or None.

    The first signal raises Stopped, except while `deferred`, where it only sets `signal` and the loop, which reads it
    between two steps, saves and returns. A second signal acts as it would have without this, so that a user who insists
    is obeyed at once. Outside the main thread, where Python cannot handle signals, it never asks to stop.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        if not self._deferred:
            raise Stopped(signal.Signals(number).name)
