"""The simulated labeler and best-of-n, against counting."""

from itertools import combinations

import numpy as np
import pytest

from lmjax.rl.best_of_n import best_of, best_of_divergence, noisy_ranks


def test_a_labeler_without_noise_ranks_by_the_known_reward_and_ties_what_is_equal():
    gold = np.array([[0.5, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(noisy_ranks(gold, 0.0, 0), [[1, 0, 2, 0], [0, 0, 0, 0]])


def test_noise_makes_as_many_mistakes_as_its_deviation_says():
    gold = np.tile([[1.0, 0.0]], (20_000, 1))
    ranks = noisy_ranks(gold, 0.5, 0)
    wrong = (ranks[:, 0] > ranks[:, 1]).mean()
    assert wrong == pytest.approx(0.0786, abs=0.006)  # P(normal of deviation 0.5 sqrt(2) < -1)
    np.testing.assert_array_equal(ranks, noisy_ranks(gold, 0.5, 0))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_draws_of_n(n):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    expected = np.mean(
        [
            g[list(drawn)][np.argmax(p[list(drawn)])]
            for p, g in zip(proxy, gold, strict=True)
            for drawn in combinations(range(5), n)
        ]
    )
    assert best_of(n, proxy, gold) == pytest.approx(expected)
    assert best_of(n, proxy, proxy) >= best_of(1, proxy, proxy) - 1e-12


def test_the_divergence_of_best_of_n_is_that_of_its_density():
    for n in (1, 2, 8):
        u = (np.arange(200_000) + 0.5) / 200_000  # the density n u^(n - 1) of the best of n uniform draws
        density = n * u ** (n - 1)
        assert best_of_divergence(n) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)
