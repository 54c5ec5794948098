"""The ranking loss against loops over prompts and pairs, with rankings of different lengths and ties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.objective.rankings import accuracy_by_size, calibration, ordered_pairs, ranking_loss

RAGGED = [
    ([0.3, -1.0, 2.0], [1, 2, 0]),
    ([0.1, 0.4], [0, 1]),
    ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 2]),
    ([5.0, 1.0], [3, 3]),
]


def padded(rankings, width=None, garbage=99.0):
    width = width or max(len(scores) for scores, _ in rankings)
    scores = np.full((len(rankings), width), garbage, np.float32)
    ranks = np.full((len(rankings), width), -7, np.int32)  # better than all, were it looked at
    present = np.zeros((len(rankings), width), bool)
    for row, (own_scores, own_ranks) in enumerate(rankings):
        scores[row, : len(own_scores)] = own_scores
        ranks[row, : len(own_ranks)] = own_ranks
        present[row, : len(own_scores)] = True
    return jnp.asarray(scores), jnp.asarray(ranks), jnp.asarray(present)


def by_hand(rankings, margins=None, smoothing=0.0, centring=0.0):
    """The sum over prompts of the mean over C(K, 2) pairs, and how many prompts count."""
    total, prompts = 0.0, 0
    for row, (scores, ranks) in enumerate(rankings):
        size, pair_losses = len(scores), []
        for i in range(size):
            for j in range(size):
                if ranks[i] < ranks[j]:
                    x = scores[i] - scores[j] - (0.0 if margins is None else margins[row][i][j])
                    right, wrong = math.log1p(math.exp(-x)), math.log1p(math.exp(x))
                    square = centring * (scores[i] + scores[j]) ** 2
                    pair_losses.append((1 - smoothing) * right + smoothing * wrong + square)
        if pair_losses:
            total += sum(pair_losses) / math.comb(size, 2)
            prompts += 1
    return total, prompts


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("centring", [0.0, 0.01])
@pytest.mark.parametrize("with_margins", [False, True])
def test_the_loss_is_a_loop_over_pairs_divided_by_all_pairs_of_the_prompt(smoothing, centring, with_margins):
    margins = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32) if with_margins else None
    options = {"label_smoothing": smoothing, "centring": centring}
    array = None if margins is None else jnp.asarray(margins)
    loss, _ = ranking_loss(*padded(RAGGED), margins_BKK=array, **options)
    total, prompts = by_hand(RAGGED, margins, smoothing, centring)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == prompts == 3


def test_pairs_are_rankings_of_two():
    loss, metrics = ranking_loss(*padded([([2.0, 0.5], [0, 1])]))
    assert float(loss.mean()) == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))), rel=1e-6)
    assert float(metrics["margin"].mean()) == pytest.approx(1.5)


def test_all_equal_ranks_have_no_weight_and_no_gradient():
    arrays = padded([([1.0, 2.0, 3.0], [4, 4, 4])])
    loss, _ = ranking_loss(*arrays)
    assert (float(loss.sum), float(loss.weight)) == (0.0, 0.0)
    np.testing.assert_array_equal(jax.grad(lambda s: ranking_loss(s, *arrays[1:])[0].sum)(arrays[0]), 0.0)


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_absent_completions_change_nothing(garbage):
    def loss_and_gradient(arrays):
        scores, ranks, present = arrays
        return jax.value_and_grad(lambda s: ranking_loss(s, ranks, present, centring=0.1)[0].sum)(scores)

    loss, gradient = loss_and_gradient(padded(RAGGED))
    other, other_gradient = loss_and_gradient(padded(RAGGED, width=6, garbage=garbage))
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
    np.testing.assert_allclose(other_gradient[:, :4], gradient, rtol=1e-6)
    np.testing.assert_array_equal(other_gradient[:, 4:], 0.0)


rankings = st.lists(
    st.integers(2, 6).flatmap(
        lambda k: st.tuples(
            st.lists(st.floats(-5, 5, width=32), min_size=k, max_size=k),
            st.lists(st.integers(0, 3), min_size=k, max_size=k),
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(rankings, st.randoms(use_true_random=False))
def test_the_order_of_completions_and_a_shift_of_scores_change_nothing(cases, random):
    loss, metrics = ranking_loss(*padded(cases, 6))
    shuffled = []
    for scores, ranks in cases:
        order = list(range(len(scores)))
        random.shuffle(order)
        shuffled.append(([scores[i] + 3.0 for i in order], [ranks[i] for i in order]))
    other, other_metrics = ranking_loss(*padded(shuffled, 6))
    total, prompts = by_hand(cases)
    assert float(loss.sum) == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert float(other.sum) == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert float(loss.weight) == float(other.weight) == prompts
    assert float(metrics["margin"].weight) == float(other_metrics["margin"].weight)


def test_a_pair_pulls_its_scores_apart_and_no_others():
    scores, ranks, present = padded([([0.0, 0.0, 0.0], [0, 1, 1])])
    gradient = jax.grad(lambda s: ranking_loss(s, ranks, present)[0].sum)(scores)
    np.testing.assert_allclose(gradient, [[-1 / 3, 1 / 6, 1 / 6]], rtol=1e-6)  # two pairs of slope 1/2, over C(3, 2)


def test_accuracy_is_over_ordered_pairs_and_told_by_size():
    arrays = padded(RAGGED)
    _, metrics = ranking_loss(*arrays)
    # of the first: 3 of 3; the second: 0 of 1; the third: 0 of 5; the last is a tie
    assert (float(metrics["accuracy"].sum), float(metrics["accuracy"].weight)) == (3.0, 9.0)
    by_size = accuracy_by_size(*arrays, 4)
    assert {k: (float(v.sum), float(v.weight)) for k, v in by_size.items()} == {2: (0, 1), 3: (3, 3), 4: (0, 5)}
    assert int(ordered_pairs(*arrays[1:]).sum()) == 9


def test_scores_that_state_true_odds_are_calibrated():
    rng = np.random.default_rng(1)
    difference = rng.normal(size=20_000) * 2
    wins = rng.random(20_000) < 1 / (1 + np.exp(-difference))
    scores = np.stack([difference, np.zeros_like(difference)], axis=1).astype(np.float32)
    ranks = np.stack([~wins, wins], axis=1).astype(np.int32)
    present = jnp.ones((20_000, 2), bool)
    confidence, right = calibration(jnp.asarray(scores), jnp.asarray(ranks), present, bins=5)
    assert float(confidence.weight.sum()) == 20_000
    np.testing.assert_allclose(confidence.mean(), right.mean(), atol=0.02)
    overconfident, right = calibration(jnp.asarray(5 * scores), jnp.asarray(ranks), present, bins=5)
    assert float((overconfident.mean() - right.mean())[-1]) > 0.1
