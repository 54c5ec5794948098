"""How fast a run goes: tokens per second, step time, MFU, the wait for input, goodput."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lmjax.parallel.chips import device_peak


def mfu(tokens_per_second: float, flops_per_token: float, kind: str, devices: int) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B): the share of the peak of so many of jax's devices
    that the model's own FLOPs take. None where the peak is not known."""
    peak = device_peak(kind)
    return None if peak is None else tokens_per_second * flops_per_token / (peak.flops * devices / peak.devices)


class Meter:
    """Measures steps as the loop passes them. Rates are over the last `window` steps, in which neither the first step,
    which compiles, nor the time inside `paused` counts.

    Goodput is the share of the wall time since the start that went into steps.
    """

    def __init__(
        self,
        flops_per_token: float,
        device_kind: str,
        devices: int,
        window: int = 50,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._kind, self._devices = device_kind, devices
        self._clock = clock
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=window)  # seconds, tokens, seconds of waiting
        self._started = clock()
        self._useful = 0.0
        self._mark: float | None = None  # when the last step ended; None before the first

    def step(self, tokens: int, waited: float) -> None:
        """One step of so many tokens has been dispatched, after `waited` seconds without a batch."""
        now = self._clock()
        if self._mark is not None:
            self._recent.append((now - self._mark, tokens, waited))
            self._useful += now - self._mark - waited
        self._mark = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside, on evaluation or a checkpoint, is not the steps'."""
        before = self._clock()
        yield
        if self._mark is not None:
            self._mark += self._clock() - before

    def read(self) -> dict[str, float]:
        """tokens_per_second, step_seconds, the shares input_wait and goodput, and mfu where the peak is known.

        Goodput is of the time since this meter was made: what came before, or in an earlier process, is not in it.
        """
        elapsed = self._clock() - self._started
        values = {"goodput": self._useful / elapsed} if elapsed > 0 else {}
        seconds = sum(second for second, _, _ in self._recent)
        if seconds <= 0:
            return values
        rate = sum(tokens for _, tokens, _ in self._recent) / seconds
        values["tokens_per_second"] = rate
        values["step_seconds"] = seconds / len(self._recent)
        values["input_wait"] = sum(waited for _, _, waited in self._recent) / seconds
        share = mfu(rate, self._flops_per_token, self._kind, self._devices)
        return values if share is None else values | {"mfu": share}
