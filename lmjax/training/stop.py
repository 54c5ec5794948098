"""Stopping on request: what SIGTERM and SIGINT do while a run is prepared, and while it trains."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 5.0  # for what runs to come to an end, or to let Python see the signal


class Stopped(BaseException):
    """Raised by a signal where nothing has to be saved."""


class Interrupted(BaseException):
    """Raised by `StopRequest.check` in what may be left unfinished, such as an evaluation."""


class StopRequest:
    """A context manager; inside it `signal` is the number of the first SIGTERM or SIGINT, or None.

    The first signal raises Stopped, except while `deferred`, where it only sets `signal` and the loop, which reads it
    between two steps, saves and returns. A second signal acts as it would have without this, so that a user who insists
    is obeyed at once. Outside the main thread, where Python cannot handle signals, it never asks to stop.

    Python handles a signal between two of its own instructions. Where SIGTERM comes while a library compiles, or trains
    a tokenizer, for minutes, and no step has been done that could be saved, the process ends after GRACE_SECONDS.

    Where a run has several processes, `agree` tells each of them, for the number of times that it was asked, whether
    all stop there: they ask at the same places. SIGTERM is then left to what is behind `agree`, and SIGINT becomes a
    SIGTERM.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, agree: Callable[[int], bool] | None = None) -> None:
        self.signal: int | None = None
        self.left_off = False  # whether an evaluation that was due is left to the next run
        self._agree = agree
        self._looks = 0
        self._deferred = False
        self.to_save = False  # whether a step has been done that is not saved yet: the loop says so
        self._before: dict[int, Any] = {}
        self._left = threading.Event()
        self._leaving: Callable[[], Any] = lambda: None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._agree is None:
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
            self._watch()
        else:
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._ask_all)}
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving()
        self._left.set()
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _watch(self) -> None:
        """Starts a thread that receives a signal when it comes, whatever the main thread is doing."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

        def watch() -> None:
            while not self._left.is_set():
                if select.select([reading], [], [], 1.0)[0] and signal.SIGTERM in os.read(reading, 100):
                    self._left.wait(GRACE_SECONDS)
                    if not self._left.is_set() and not self.to_save:
                        print("stopped; the same command resumes", flush=True)
                        os._exit(128 + signal.SIGTERM)
            for end in (reading, writing):
                os.close(end)

        thread = threading.Thread(target=watch, name="lmjax stop", daemon=True)
        thread.start()
        self._leaving = lambda: signal.set_wakeup_fd(before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = self.to_save = False

    def asked(self) -> bool:
        """Whether to stop here; the same answer in all processes of a run, which ask equally often."""
        self._looks += 1
        if self._agree is not None and self.signal is None and self._agree(self._looks):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def check(self) -> None:
        """Raises Interrupted where a stop is asked for."""
        if self.asked():
            raise Interrupted

    def _ask_all(self, number: int, _: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGTERM)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._give_back()
        if not self._deferred:
            raise Stopped(signal.Signals(number).name)
