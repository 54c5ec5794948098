"""Rotary positions and T5's relative bias against references written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.positions import DistanceBias, RelativeBias, relative_bucket
from lmjax.model.rotary import plain_rotation, rotate
from lmjax.settings import PositionSettings


def rotated_by_complex_numbers(x, positions, base):
    """Pair i of a head, halves apart, as a complex number turned by position x base^(-2i/K), in float64."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    angles = positions[..., None, None] * base ** (-2 * np.arange(half) / x.shape[-1])
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotary_turns_each_pair_by_its_angle(base, by_product):
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2], [5, 90, 1000, 4, 3, 2, 1]], np.int32)
    turned = rotate(jnp.asarray(x), jnp.asarray(positions), plain_rotation(base, 8), by_product)
    np.testing.assert_allclose(turned, rotated_by_complex_numbers(x, positions, base), atol=1e-3)
    near = positions < 100  # where float32 angles are exact enough to ask for more
    np.testing.assert_allclose(turned[near], rotated_by_complex_numbers(x, positions, base)[near], atol=2e-5)


def test_rotary_angles_are_float32_for_bfloat16_vectors():
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    position = jnp.array([[513]], jnp.int32)  # bfloat16 would make it 512
    turned = rotate(x, position, plain_rotation(10_000.0, 4))
    assert turned.dtype == jnp.bfloat16
    expected = rotated_by_complex_numbers(np.ones((1, 1, 1, 4)), np.array([[513]]), 10_000.0)
    np.testing.assert_allclose(turned.astype(jnp.float32), expected, atol=1e-2)


def test_the_product_that_turns_pairs_on_a_tpu_rounds_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 7, 3, 16), jnp.bfloat16)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def run(by_product):
        def loss(x):
            turned = rotate(x, positions, plain_rotation(10_000.0, 16), by_product)
            return (weights * turned.astype(jnp.float32)).sum(), turned

        return jax.grad(loss, has_aux=True)(x)

    (gradient, turned), (expected_gradient, expected) = run(True), run(False)
    np.testing.assert_array_equal(turned.astype(jnp.float32), expected.astype(jnp.float32))
    difference = (gradient - expected_gradient).astype(jnp.float32)
    assert jnp.abs(difference).max() <= 2.0**-7 * jnp.abs(expected_gradient).max()  # gradients are rounded once more


def bucket_by_definition(distance, buckets, furthest, bidirectional):
    """Raffel et al. 2020, section 2.1, and the released code: one bucket per distance, then logarithmic ones."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    # floor(log(d / exact) / log(furthest / exact) x n), with integers: the largest step whose power is reached
    steps = buckets - exact
    step = max(n for n in range(steps + 1) if distance**steps * exact**n >= exact**steps * furthest**n)
    return offset + min(exact + step, buckets - 1)


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_are_t5s(buckets, furthest, bidirectional):
    distances = np.arange(-300, 301)
    expected = [bucket_by_definition(int(d), buckets, furthest, bidirectional) for d in distances]
    call = jax.jit(relative_bucket, static_argnums=(1, 2, 3))  # compiled: a reciprocal must not move a boundary
    found = call(jnp.asarray(distances, jnp.int32), buckets, furthest, bidirectional)
    assert np.asarray(found).tolist() == expected


def test_a_decoder_has_one_bucket_for_all_that_comes_after():
    assert np.unique(relative_bucket(jnp.arange(1, 50), 32, 128, False)).tolist() == [0]


def test_the_bias_of_a_head_is_its_table_at_the_bucket_of_each_distance():
    settings = PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=20)
    module = RelativeBias(settings, heads=2, bidirectional=False, std=1.0)
    queries, keys = jnp.arange(3) + 4, jnp.arange(7)
    table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    by_distance = module.apply({"params": {"table": jnp.asarray(table)}}, queries, keys)
    bias = by_distance.scores(3, 7)
    assert bias.shape == (1, 2, 3, 7)
    for head, t, s in np.ndindex(2, 3, 7):
        assert bias[0, head, t, s] == table[bucket_by_definition(s - (t + 4), 8, 20, False), head]
    band = np.asarray(by_distance.band(3, 7, 2, -1, 4))  # of two queries from t on and the keys from t - 1 to t + 3
    assert band.shape == (2, 2, 5)
    for head, r, c in np.ndindex(band.shape):
        assert band[head, r, c] == bias[0, head, r + 1, c], "t = 1"
    with pytest.raises(ValueError, match="a bias of 9 distances for 4 queries and 7 keys: expected 10"):
        by_distance.scores(4, 7)


def test_a_bias_of_many_queries_is_made_of_bands():
    """More queries than a band has, which is no multiple of the step of its slices."""
    values = np.random.default_rng(0).normal(size=(2, 600 + 300 - 1)).astype(np.float32)
    scores = np.asarray(jax.jit(lambda x: DistanceBias(x).scores(600, 300))(values))
    distance = np.arange(300)[None, :] - np.arange(600)[:, None]
    np.testing.assert_array_equal(scores[0], values[:, distance + 599])
