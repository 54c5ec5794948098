"""What a model's forward pass returns: hidden states, and auxiliary losses as (sum, weight) pairs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


@functools.partial(jax.tree_util.register_dataclass, data_fields=["sum", "weight"], meta_fields=[])
@dataclass(frozen=True)
class Weighted:
    """A weighted sum and its weight, both float32 scalars; or several such pairs, as two arrays of one shape.

    Sums and weights are added over microbatches, devices and batches; `mean` divides once, by the global weight.
    """

    sum: jax.Array
    weight: jax.Array

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.sum + other.sum, self.weight + other.weight)

    def mean(self) -> jax.Array:
        """sum / weight, and 0 where the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.sum / jnp.where(empty, 1.0, self.weight))


Auxiliary = dict[str, Weighted]


class Outputs(NamedTuple):
    """Hidden states [B, T, D], and the auxiliary losses of the pass by name; a model without any returns {}.

    An auxiliary loss has one pair per row, [B] each: the sum of its values over the row's real tokens, multiplied by
    its coefficient, and the number of these tokens. `lmjax.objective.weighted.with_auxiliary` adds it to a loss.
    """

    hidden: jax.Array
    aux: Auxiliary
