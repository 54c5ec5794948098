"""Sums of several means in one loss, which divides once: the weights of one are scaled to the other's total.

A loss is a sum over the batch divided by one weight (lmjax/objective/weighted.py). Where it adds the mean over rows to
the mean over tokens, the rows' weights are scaled so that they sum up to the tokens': then both are divided by that. It
is done on the whole batch, before microbatches and devices cut it, so that neither changes anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def scaled_to(weights: jax.Array, total: jax.Array) -> jax.Array:
    """The weights, of any shape, times what makes them sum up to `total`; 0 where all are 0."""
    own = weights.sum()
    return weights * jnp.where(own == 0, 0.0, total / jnp.where(own == 0, 1.0, own))
