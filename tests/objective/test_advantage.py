"""KL estimates, rewards, whitening, advantages and the adaptive coefficient against loops over ragged responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.objective.advantage import (
    adapted_coefficient,
    advantages_and_returns,
    estimate_kl,
    last_token,
    masked_mean,
    penalised_rewards,
    whiten,
)

# Compiled whole, as a step does: operation by operation each of many shapes would be ten programs.
whiten = jax.jit(whiten, static_argnames="centre")

LENGTHS = [5, 1, 3, 0, 7]
WIDTH = 7


def ragged(seed=0, lengths=LENGTHS, left=0, garbage=1e6):
    """Lists of numbers, and the same as an array whose masked places hold garbage; responses begin at column `left`."""
    rng = np.random.default_rng(seed)
    lists = [rng.normal(size=n) for n in lengths]
    array = np.full((len(lengths), left + max(*lengths, WIDTH)), garbage, np.float32)
    for row, values in enumerate(lists):
        array[row, left : left + len(values)] = values
    return lists, jnp.asarray(array)


def mask_of(lengths=LENGTHS, left=0):
    return ragged(0, lengths, left, 0.0)[1] != 0.0


def check(array, lists, left=0, rtol=1e-5):
    array = np.asarray(array)
    for row, values in enumerate(lists):
        np.testing.assert_allclose(array[row, left : left + len(values)], values, rtol=rtol, atol=1e-5)
        assert not array[row, :left].any() and not array[row, left + len(values) :].any()


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 0.9)])
def test_advantages_are_a_loop_backwards_over_each_response(discount, gae_lambda, left):
    rewards, reward_array = ragged(1, left=left)
    values, value_array = ragged(2, left=left)
    expected, returns = [], []
    for own_rewards, own_values in zip(rewards, values, strict=True):
        own, later, next_value = [], 0.0, 0.0
        for reward, value in zip(own_rewards[::-1], own_values[::-1], strict=True):
            later = reward + discount * next_value - value + discount * gae_lambda * later
            next_value = value
            own.append(later)
        expected.append(np.array(own[::-1]))
        returns.append(expected[-1] + own_values)
    mask = mask_of(left=left).astype(jnp.float32)
    got = advantages_and_returns(reward_array, value_array, mask, discount=discount, gae_lambda=gae_lambda)
    check(got[0], expected, left)
    check(got[1], returns, left)


def test_without_discount_and_lambda_the_return_is_the_sum_of_the_rewards_that_follow():
    rewards, reward_array = ragged(1)
    _, values = ragged(2)
    _, returns = advantages_and_returns(reward_array, values, mask_of(), discount=1.0, gae_lambda=1.0)
    check(returns, [own[::-1].cumsum()[::-1] for own in rewards], rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2))
def test_a_response_has_the_same_advantages_alone_and_anywhere_in_a_batch(lengths, discount, gae_lambda, left):
    gae = jax.jit(advantages_and_returns)
    together = [ragged(seed, lengths, left)[1] for seed in (3, 4)]
    options = {"discount": discount, "gae_lambda": gae_lambda}
    both = gae(*together, mask_of(lengths, left), **options)[0]
    for row, length in enumerate(lengths):
        alone = [jnp.asarray(np.roll(array[row : row + 1, : left + WIDTH], -left, axis=1)) for array in together]
        mask = jnp.arange(left + WIDTH)[None] < length
        got = gae(*alone, mask, **options)[0]
        np.testing.assert_allclose(got[0, :length], both[row, left : left + length], rtol=1e-5, atol=1e-5)


def test_the_score_falls_on_the_last_token_and_the_penalty_on_every_one():
    kl, kl_array = ragged(5)
    scores = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0])
    got = penalised_rewards(scores, kl_array, mask_of().astype(jnp.float32), 0.1)
    expected = [-0.1 * own for own in kl]
    for row, own in enumerate(expected):
        if len(own):
            own[-1] += float(scores[row])
    check(got, expected)


def test_the_last_token_is_found_by_mask():
    assert np.asarray(last_token(mask_of(left=1))).nonzero()[1].tolist() == [5, 1, 3, 7]
    np.testing.assert_array_equal(last_token(jnp.asarray([[0, 0], [1, 1]])), [[0, 0], [0, 1]])


@pytest.mark.parametrize("centre", [True, False])
def test_whitening_uses_the_population_variance_of_real_tokens(centre):
    lists, array = ragged(6)
    flat = np.concatenate(lists) * 3 + 5
    got = whiten(jnp.where(mask_of(), array * 3 + 5, array), mask_of().astype(jnp.float32), centre=centre)
    white = (flat - flat.mean()) / np.sqrt(((flat - flat.mean()) ** 2).sum() / len(flat))
    expected = np.split(white + (0 if centre else flat.mean()), np.cumsum(LENGTHS)[:-1])
    check(got, expected, rtol=1e-4)
    assert float(masked_mean(got, mask_of())) == pytest.approx(0 if centre else flat.mean(), abs=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_padding_contributes_nothing_to_any_of_them(garbage):
    mask = mask_of().astype(jnp.float32)
    clean, dirty = ragged(7, garbage=0.0)[1], ragged(7, garbage=garbage)[1]
    for function in (
        lambda x: whiten(x, mask, centre=True),
        lambda x: whiten(x, mask, centre=False),
        lambda x: advantages_and_returns(x, x, mask, discount=0.9, gae_lambda=0.9)[1],
        lambda x: penalised_rewards(jnp.ones(5), x, mask, 0.3),
        lambda x: masked_mean(x, mask),
    ):
        np.testing.assert_array_equal(function(dirty), function(clean))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3.0, 1000.1, 1e30])
def test_equal_values_whiten_to_exactly_nothing_and_stay_what_they_are_uncentred(value, dtype):
    for size in range(1, 18):
        mask = np.asarray([[1.0] * size + [0.0], [1.0] + [0.0] * size], np.float32)
        values = np.where(mask > 0, value, 7.0).astype(dtype)
        np.testing.assert_array_equal(whiten(values, mask, centre=True), np.zeros(mask.shape))
        kept = np.where(mask > 0, values.astype(np.float32), 0)
        np.testing.assert_array_equal(np.asarray(whiten(values, mask, centre=False)).astype(np.float32), kept)


@pytest.mark.parametrize("apart", [1e-4, 1e-2, 1.0])
def test_values_that_nearly_agree_whiten_by_their_true_deviation(apart):
    """At 1,000 floats are 6e-5 apart: the deviation is that of what was rounded, in float64."""
    values = (1000.1 + apart * np.asarray([[0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 5.0]])).astype(np.float32)
    wide = values.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-8)
    np.testing.assert_allclose(whiten(values, jnp.ones((1, 7)), centre=True), expected, rtol=1e-5, atol=1e-5)


def test_whitening_of_equal_values_and_of_nothing_is_finite():
    np.testing.assert_array_equal(whiten(jnp.full((2, 3), 2.0), jnp.ones((2, 3)), centre=True), 0.0)
    np.testing.assert_array_equal(whiten(jnp.full((2, 3), 2.0), jnp.zeros((2, 3)), centre=False), 0.0)


def test_the_estimators_are_what_they_estimate():
    rng = np.random.default_rng(8)
    p_logits, q_logits = rng.normal(size=6), rng.normal(size=6) * 0.3
    p, q = (np.exp(x) / np.exp(x).sum() for x in (p_logits, q_logits))
    kl = (p * np.log(p / q)).sum()
    estimates = {kind: np.asarray(estimate_kl(jnp.log(p), jnp.log(q), kind)) for kind in ("k1", "k2", "k3")}
    assert (p * estimates["k1"]).sum() == pytest.approx(kl, rel=1e-5)
    assert (p * estimates["k3"]).sum() == pytest.approx(kl, rel=1e-5)
    assert (p * estimates["k2"]).sum() == pytest.approx(0.5 * (p * np.log(p / q) ** 2).sum(), rel=1e-5)


@given(st.floats(-8, 8), st.floats(-8, 8))
@settings(max_examples=50, deadline=None)
def test_k2_and_k3_are_never_negative_and_all_vanish_for_equal_policies(log_p, log_q):
    a, b = jnp.float32(log_p), jnp.float32(log_q)
    assert float(estimate_kl(a, b, "k1")) == -float(estimate_kl(b, a, "k1"))
    for kind in ("k2", "k3"):
        assert float(estimate_kl(a, b, kind)) >= 0
        assert float(estimate_kl(a, a, kind)) == 0


@pytest.mark.parametrize(("kl", "change"), [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (5.4, -0.1), (0.0, -0.2)])
def test_the_coefficient_moves_towards_the_target_by_at_most_a_fifth_per_horizon(kl, change):
    got = adapted_coefficient(jnp.float32(0.15), jnp.float32(kl), target=6.0, episodes=512, horizon=10_000)
    assert float(got) == pytest.approx(0.15 * (1 + change * 512 / 10_000), rel=1e-6)


def test_a_controlled_divergence_settles_at_its_target():
    coefficient = jnp.float32(0.01)
    for _ in range(2000):
        kl = 1.2 / coefficient  # a policy that strays less the dearer it is
        coefficient = adapted_coefficient(coefficient, kl, target=6.0, episodes=512, horizon=10_000)
    assert float(coefficient) == pytest.approx(0.2, rel=1e-2)


def test_no_gradient_of_a_penalty_reaches_masked_places():
    mask = mask_of().astype(jnp.float32)
    gradient = jax.grad(lambda x: penalised_rewards(jnp.zeros(5), x, mask, 0.5).sum())(jnp.ones_like(mask))
    np.testing.assert_array_equal(gradient, -0.5 * mask)
