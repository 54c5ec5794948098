"""Stopping on request: SIGTERM and SIGINT become a flag that the loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """A context manager; inside it `signal` is the number of the first SIGTERM or SIGINT, or None.

    A second signal acts as it would have without this, so that a user who insists is obeyed at once. Outside the
    main thread, where Python cannot handle signals, it never asks to stop.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
