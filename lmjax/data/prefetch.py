"""Prepares the values of coming steps in the background, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    produce: Callable[[int], T], first: int, last: int, depth: int
) -> Generator[tuple[int, T, float], None, None]:
    """Yields (step, produce(step), seconds waited for it) for first <= step < last.

    Up to `depth` values are prepared ahead by a background thread, whose exceptions are raised here, at their step.
    Closing the iterator, as a `break` in a for loop does, waits for the running call and drops prepared values.
    """
    if depth < 1:
        raise ValueError(f"prefetch: depth = {depth}: expected 1 or more")
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    submitted = first
    try:
        for step in range(first, last):
            while submitted < min(last, step + depth + 1):
                waiting.append(pool.submit(produce, submitted))
                submitted += 1
            started = time.perf_counter()
            value = waiting.popleft().result()
            yield step, value, time.perf_counter() - started
            del value
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
