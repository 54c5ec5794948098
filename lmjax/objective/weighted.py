"""The (sum, weight) pair: every loss and metric is one until it is read.

Sums add up over microbatches, devices and batches; the division by the global weight happens once, in `mean`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch


@functools.partial(jax.tree_util.register_dataclass, data_fields=["sum", "weight"], meta_fields=[])
@dataclass(frozen=True)
class Weighted:
    """A weighted sum and its weight, both float32 scalars."""

    sum: jax.Array
    weight: jax.Array

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.sum + other.sum, self.weight + other.weight)

    def mean(self) -> jax.Array:
        """sum / weight, and 0 where the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.sum / jnp.where(empty, 1.0, self.weight))


def added_up(readings: Iterable[dict[str, Weighted]]) -> dict[str, Weighted]:
    """The sums of many batches' readings, on the host; nothing of no readings.

    Each is fetched when the next was dispatched. Left to themselves, programs queue up: XLA's CPU client takes 32 per
    device, and then launches the next one on the threads that the collectives of those before it are waiting for.
    """
    total: dict[str, Weighted] = {}

    def add(fetched: dict[str, Weighted]) -> None:
        for name, pair in fetched.items():
            total[name] = total[name] + pair if name in total else pair

    waiting: dict[str, Weighted] = {}
    for reading in readings:
        add(jax.device_get(waiting))
        waiting = reading
    add(jax.device_get(waiting))
    return total


# (params, batch, rng) -> (loss, metrics); rng is None where there is no dropout.
LossFunction = Callable[[Any, Batch, jax.Array | None], tuple[Weighted, dict[str, Weighted]]]
