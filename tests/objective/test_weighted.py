"""The pair: sums add up, and the division happens once."""

import jax
import jax.numpy as jnp

from lmjax.objective.weighted import Weighted, added_up


def test_the_mean_of_a_sum_of_pairs_is_not_the_mean_of_their_means():
    short, long = Weighted(jnp.float32(10.0), jnp.float32(1.0)), Weighted(jnp.float32(0.0), jnp.float32(99.0))
    assert float((short + long).mean()) == jnp.float32(0.1)


def test_the_mean_without_weight_is_zero_and_has_no_gradient_of_nan():
    def mean(total):
        return Weighted(total, jnp.float32(0.0)).mean()

    value, slope = jax.value_and_grad(mean)(jnp.float32(3.0))
    assert (float(value), float(slope)) == (0.0, 0.0)


def test_readings_add_up_on_the_host_while_one_more_is_dispatched(monkeypatch):
    events, fetch = [], jax.device_get

    def fetched(reading):
        events.extend(f"fetch {float(pair.sum)}" for pair in reading.values())
        return fetch(reading)

    def readings():
        for value in (1.0, 2.0, 4.0):
            events.append(f"dispatch {value}")
            yield {"loss": Weighted(jnp.float32(value), jnp.float32(2.0))}

    monkeypatch.setattr(jax, "device_get", fetched)
    total = added_up(readings())
    wanted = ["dispatch 1.0", "dispatch 2.0", "fetch 1.0", "dispatch 4.0", "fetch 2.0", "fetch 4.0"]
    assert events == wanted
    assert (float(total["loss"].sum), float(total["loss"].weight)) == (7.0, 6.0)
    assert not isinstance(total["loss"].sum, jax.Array) and added_up([]) == {}
