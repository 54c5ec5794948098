"""The (sum, weight) pair: every loss and metric is one until it is read.

Sums add up over microbatches, devices and batches; the division by the global weight happens once, in `mean`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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


# (params, batch, rng) -> (loss, metrics); rng is None where there is no dropout.
LossFunction = Callable[[Any, Batch, jax.Array | None], tuple[Weighted, dict[str, Weighted]]]
