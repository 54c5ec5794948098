"""A simulated labeler, and the expected value of best-of-n sampling: array functions on the host.

In: the known reward of K answers to each of B prompts, [B, K]. Out: the ranks that a labeler with noise gives them, and
the expected value of the best of n answers by a reward model's scores.
"""

from __future__ import annotations

import math

import numpy as np


def noisy_ranks(known_BK: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """The rank of each answer, int64 [B, K], 0 for the best, by known reward plus normal noise.

    `noise` is the noise's standard deviation. Answers of equal noisy reward are tied.
    """
    noisy_BK = known_BK + noise * np.random.default_rng(seed).normal(size=known_BK.shape)
    return np.stack([np.unique(-noisy_K, return_inverse=True)[1].reshape(-1) for noisy_K in noisy_BK])


def best_of(n: int, scores_BK: np.ndarray, values_BK: np.ndarray) -> float:
    """The expected value of the answer with the highest score among n drawn from the K without replacement.

    Averaged over prompts; unbiased for n independent answers (Nakano et al. 2021, appendix I). Among equal scores the
    first answer is taken.
    """
    K = scores_BK.shape[1]
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")  # the best first
    sorted_BK = np.take_along_axis(values_BK, order_BK, axis=1)
    # Answer i of the order is the best of n drawn answers if the other n - 1 are among the K - 1 - i after it.
    probability_K = np.array([math.comb(K - 1 - i, n - 1) / math.comb(K, n) for i in range(K)])
    return float((sorted_BK * probability_K).sum(axis=1).mean())


def best_of_divergence(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G.3)."""
    return math.log(n) - (n - 1) / n
