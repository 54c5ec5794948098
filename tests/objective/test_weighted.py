"""The pair: sums add up, and the division happens once."""

import jax
import jax.numpy as jnp

from lmjax.objective.weighted import Weighted


def test_the_mean_of_a_sum_of_pairs_is_not_the_mean_of_their_means():
    short, long = Weighted(jnp.float32(10.0), jnp.float32(1.0)), Weighted(jnp.float32(0.0), jnp.float32(99.0))
    assert float((short + long).mean()) == jnp.float32(0.1)


def test_the_mean_without_weight_is_zero_and_has_no_gradient_of_nan():
    def mean(total):
        return Weighted(total, jnp.float32(0.0)).mean()

    value, slope = jax.value_and_grad(mean)(jnp.float32(3.0))
    assert (float(value), float(slope)) == (0.0, 0.0)
