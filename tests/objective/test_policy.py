"""The losses of PPO, PPO-ptx, DPO and GRPO against loops over ragged responses, and what they must reduce to."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.objective.advantage import deviations
from lmjax.objective.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    explained_variance,
    group_advantages,
    grpo_loss,
    ptx_weights,
)

# Compiled whole, as a step does: operation by operation each of many shapes would be ten programs.
group_advantages = jax.jit(group_advantages, static_argnames="group")

LENGTHS = [4, 1, 6, 0]
WIDTH = 6


def ragged(seed, scale=1.0, garbage=7.0):
    rng = np.random.default_rng(seed)
    lists = [rng.normal(size=n) * scale for n in LENGTHS]
    array = np.full((len(LENGTHS), WIDTH), garbage, np.float32)
    for row, values in enumerate(lists):
        array[row, : len(values)] = values
    return lists, jnp.asarray(array)


MASK = (jnp.arange(WIDTH)[None] < jnp.asarray(LENGTHS)[:, None]).astype(jnp.float32)
TOKENS = sum(LENGTHS)


@pytest.mark.parametrize("clip", [0.2, 0.05, math.inf])
def test_the_policy_loss_is_a_loop_over_tokens(clip):
    (new, new_array), (old, old_array), (gain, gain_array) = ragged(0, 0.3), ragged(1, 0.3), ragged(2)
    total, clipped, ratios, kl = 0.0, 0, [], 0.0
    for p, q, advantages in zip(new, old, gain, strict=True):
        for a, b, advantage in zip(p, q, advantages, strict=True):
            ratio = math.exp(a - b)
            bounded = min(max(ratio, 1 - clip), 1 + clip)
            total += max(-ratio * advantage, -bounded * advantage)
            clipped += bounded != ratio
            ratios.append(ratio)
            kl += ratio - 1 - math.log(ratio)
    loss, metrics = clipped_policy_loss(new_array, old_array, gain_array, MASK, clip=clip)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == TOKENS
    assert float(metrics["clip_fraction"].mean()) == pytest.approx(clipped / TOKENS)
    assert float(metrics["ratio"].mean()) == pytest.approx(np.mean(ratios), rel=1e-5)
    assert float(metrics["ratio_variance"].mean()) == pytest.approx(np.mean((np.array(ratios) - 1) ** 2), rel=1e-4)
    assert float(metrics["update_kl"].mean()) == pytest.approx(kl / TOKENS, rel=1e-4)


def test_at_the_sampling_policy_the_gradient_is_the_vanilla_policy_gradient():
    (_, old), (_, gain) = ragged(1, 0.3), ragged(2)
    for clip in (0.2, math.inf):
        loss, metrics = clipped_policy_loss(old, old, gain, MASK, clip=clip)
        gradient = jax.grad(lambda x, clip=clip: clipped_policy_loss(x, old, gain, MASK, clip=clip)[0].sum)(old)
        np.testing.assert_array_equal(gradient, jnp.where(MASK > 0, -gain, 0.0))
        assert float(metrics["ratio"].mean()) == 1.0
        assert float(metrics["update_kl"].sum) == float(metrics["clip_fraction"].sum) == 0.0
        assert float(loss.sum) == pytest.approx(float(jnp.where(MASK > 0, -gain, 0.0).sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "advantage", "moves"), [(0.5, 1, False), (0.5, -1, True), (-0.5, 1, True), (-0.5, -1, False)]
)
def test_a_clipped_token_has_no_gradient_unless_it_moves_back(change, advantage, moves):
    one = jnp.ones((1, 1))
    gradient = jax.grad(lambda x: clipped_policy_loss(x, 0 * one, advantage * one, one, clip=0.2)[0].sum)(change * one)
    assert bool(gradient[0, 0] != 0) is moves


@pytest.mark.parametrize("clip", [0.2, 0.7, math.inf])
def test_the_value_loss_is_a_loop_over_tokens(clip):
    (value, value_array), (old, old_array), (target, target_array) = ragged(3), ragged(4), ragged(5)
    total, error, clipped = 0.0, 0.0, 0
    for v, o, r in zip(*map(np.concatenate, (value, old, target)), strict=True):
        near = min(max(v, o - clip), o + clip)
        total += 0.5 * max((v - r) ** 2, (near - r) ** 2)
        error += (v - r) ** 2
        clipped += (near - r) ** 2 > (v - r) ** 2
    loss, metrics = clipped_value_loss(value_array, old_array, target_array, MASK, clip=clip)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == TOKENS
    assert float(metrics["value_error"].sum) == pytest.approx(error, rel=1e-5)
    assert float(metrics["value_clip_fraction"].sum) == clipped


def losses(garbage):
    new, old, gain, reference = (ragged(seed, 0.3, garbage)[1] for seed in range(4))
    per_row = jnp.asarray([1.0, -1.0, 0.5, -0.5])
    return {
        "policy": lambda x: clipped_policy_loss(x, old, gain, MASK, clip=0.2)[0].sum,
        "value": lambda x: clipped_value_loss(x, old, gain, MASK, clip=0.2)[0].sum,
        "grpo": lambda x: grpo_loss(x, old, reference, per_row, MASK, clip=0.2, kl_coefficient=0.1)[0].sum,
    }, new


@pytest.mark.parametrize("name", ["policy", "value", "grpo"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_changes_no_bit_of_a_loss_or_of_its_gradient(name, garbage):
    clean, x = losses(0.0)
    dirty, y = losses(garbage)
    a, b = jax.value_and_grad(clean[name])(x), jax.value_and_grad(dirty[name])(y)
    assert float(a[0]) == float(b[0])
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(b[1][MASK == 0], 0.0)


def test_explained_variance_is_one_for_the_truth_and_nothing_for_a_constant():
    (_, returns), (_, values) = ragged(6), ragged(7)
    assert float(explained_variance(returns, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(jnp.full_like(returns, 3.0), returns, MASK)) == pytest.approx(0.0, abs=1e-6)
    flat_returns, flat_values = (np.concatenate(ragged(seed)[0]) for seed in (6, 7))
    expected = 1 - (flat_returns - flat_values).var() / flat_returns.var()
    assert float(explained_variance(values, returns, MASK)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [0.1, 1.0, 1000.1, 1e30, -3.0])
def test_of_equal_returns_nothing_is_explained(value):
    returns = jnp.full_like(MASK, value)
    for values in (returns, jnp.zeros_like(returns), ragged(7)[1]):
        assert float(explained_variance(values, returns, MASK)) == 0.0


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_mixed_objective_is_the_sum_of_two_means_however_it_is_cut(parts):
    rng = np.random.default_rng(8)
    policy, entropy = rng.normal(size=(4, 6)).astype(np.float32), rng.random((4, 9)).astype(np.float32)
    weights = (rng.random((4, 9)) < 0.4).astype(np.float32)
    weights[0] = 0.0
    mixed = ptx_weights(jnp.asarray(weights), MASK, 27.8)
    total = weight = 0.0
    for rows in np.split(np.arange(4), parts):
        total += float((policy[rows] * MASK[rows]).sum() + (entropy[rows] * mixed[rows]).sum())
        weight += float(MASK[rows].sum())
    expected = (policy * MASK).sum() / TOKENS + 27.8 * (entropy * weights).sum() / weights.sum()
    assert total / weight == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_array_equal(ptx_weights(jnp.zeros((2, 3)), MASK, 27.8), 0.0)


def test_the_dpo_loss_is_a_loop_over_pairs():
    rng = np.random.default_rng(9)
    arrays = rng.normal(size=(2, 5, 2)).astype(np.float32) * 3
    present = np.array([[1, 1], [1, 1], [0, 0], [1, 1], [1, 1]], bool)
    ranks = np.array([[0, 1], [1, 0], [0, 1], [0, 1], [0, 1]])
    total, right = 0.0, 0
    for policy, reference, rank, here in zip(*arrays, ranks, present, strict=True):
        if here.all():
            chosen, rejected = (0, 1) if rank[0] == 0 else (1, 0)
            margin = 0.3 * ((policy - reference)[chosen] - (policy - reference)[rejected])
            total += -0.9 * math.log(1 / (1 + math.exp(-margin))) - 0.1 * math.log(1 / (1 + math.exp(margin)))
            right += margin > 0
    loss, metrics = dpo_loss(*map(jnp.asarray, (*arrays, ranks, present)), beta=0.3, label_smoothing=0.1)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert (float(loss.weight), float(metrics["accuracy"].sum)) == (4.0, right)


def test_dpo_at_the_reference_is_log_two_and_raises_the_chosen_answer():
    same = jnp.asarray([[-3.0, -5.0]])
    ranks, present = jnp.asarray([[0, 1]]), jnp.ones((1, 2), bool)

    def loss(log_probs):
        return dpo_loss(log_probs, same, ranks, present, beta=0.2)[0].sum

    assert float(loss(same)) == pytest.approx(math.log(2))
    np.testing.assert_allclose(jax.grad(loss)(same), [[-0.1, 0.1]], rtol=1e-6)


def centred(scores):
    """Scores of groups of four, minus their group's mean."""
    return deviations(scores.reshape(-1, 4), jnp.ones((len(scores) // 4, 4)), axis=1)[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=8, max_size=8), st.floats(0.5, 4), st.floats(-5, 5))
def test_group_advantages_are_centred_and_forget_scale_and_shift(scores, scale, shift):
    scores = jnp.asarray(scores)
    plain = centred(scores)
    np.testing.assert_allclose(plain.sum(axis=1), 0.0, atol=1e-4)
    expected = np.concatenate([(g - g.mean()) / (g.std() + 1e-4) for g in np.asarray(scores, np.float64).reshape(2, 4)])
    np.testing.assert_allclose(group_advantages(scores, 4), expected, atol=2e-3)
    np.testing.assert_allclose(centred(scores + shift), plain, atol=1e-4)
    np.testing.assert_allclose(centred(scores * scale), plain * scale, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -3.0, 1000.1, 1e30])
def test_equal_scores_of_a_group_are_no_reason_to_learn(value, dtype):
    """Also where another group of the batch differs, and where the sum of a group rounds."""
    for group in range(2, 18):
        scores = np.concatenate([np.full(group, value), np.arange(group)]).astype(dtype)
        equal, others = np.asarray(group_advantages(scores, group)).reshape(2, group)
        assert equal.dtype == dtype
        np.testing.assert_array_equal(equal, np.zeros(group, dtype))
        assert float(others[-1]) > 0.4


@settings(max_examples=50, deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 64))
def test_a_group_of_any_size_with_any_equal_score_has_no_advantages(value, group):
    found = group_advantages(np.full(2 * group, value, np.float32), group)
    np.testing.assert_array_equal(found, np.zeros(2 * group))


@pytest.mark.parametrize("apart", [1e-6, 1e-4, 1e-2])
def test_scores_that_nearly_agree_have_advantages_that_fade_with_their_distance(apart):
    """The 1e-4 beside the deviation makes them go to 0 without a step as scores become equal."""
    scores = np.asarray([0.1, 0.1, 0.1, 0.1 + apart], np.float32)
    wide = scores.astype(np.float64)
    expected = (wide - wide.mean()) / (wide.std() + 1e-4)
    np.testing.assert_allclose(group_advantages(jnp.asarray(scores), 4), expected, rtol=1e-4, atol=1e-7)


def test_the_grpo_loss_is_a_mean_within_each_response():
    (new, new_array), (old, old_array), (reference, reference_array) = ragged(10, 0.3), ragged(11, 0.3), ragged(12, 0.3)
    advantages = [1.5, -0.5, -1.0, 2.0]
    total = 0.0
    for p, q, f, advantage in zip(new, old, reference, advantages, strict=True):
        own = []
        for a, b, c in zip(p, q, f, strict=True):
            ratio = math.exp(a - b)
            gain = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            own.append(-gain + 0.04 * (math.exp(c - a) - (c - a) - 1))
        total += sum(own) / len(own) if own else 0.0
    loss, metrics = grpo_loss(
        new_array, old_array, reference_array, jnp.asarray(advantages), MASK, clip=0.2, kl_coefficient=0.04
    )
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == 3.0
    assert float(metrics["kl_per_token"].weight) == TOKENS


def test_no_gradient_goes_through_what_was_sampled():
    (_, new), (_, old), (_, gain) = ragged(0, 0.3), ragged(1, 0.3), ragged(2)
    through = jax.grad(lambda o, g: clipped_policy_loss(new, o, g, MASK, clip=0.2)[0].sum, argnums=(0, 1))(old, gain)
    through += jax.grad(lambda o, g: clipped_value_loss(new, o, g, MASK, clip=0.2)[0].sum, argnums=(0, 1))(old, gain)
    for gradient in through:
        np.testing.assert_array_equal(gradient, 0.0)
