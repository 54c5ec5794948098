"""A simulated labeler, and how good the best of n answers is: array functions on the host.

In: the known ("gold") reward of K answers to each of B prompts, [B, K]. Out: ranks as a labeler with noise would give
them, and what best-of-n sampling by another ("proxy") reward would reach.
"""

from __future__ import annotations

import math

import numpy as np


def noisy_ranks(gold_BK: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """The rank of each answer, int64 [B, K], 0 the best, by gold reward plus normal noise of this deviation.

    Answers that are equal to the labeler are tied.
    """
    felt_BK = gold_BK + noise * np.random.default_rng(seed).normal(size=gold_BK.shape)
    return np.stack([np.unique(-felt_K, return_inverse=True)[1].reshape(-1) for felt_K in felt_BK])


def best_of(n: int, proxy_BK: np.ndarray, values_BK: np.ndarray) -> float:
    """The expected value of the answer that the proxy prefers among n drawn from the K without replacement.

    Averaged over prompts; unbiased for n independent answers (Nakano et al. 2021, appendix I). Ties of the proxy go to
    the answer that comes first.
    """
    K = proxy_BK.shape[1]
    order_BK = np.argsort(-proxy_BK, axis=1, kind="stable")  # the best first
    sorted_BK = np.take_along_axis(values_BK, order_BK, axis=1)
    # The answer at place i is the best of the n drawn when the n - 1 others are among the K - 1 - i behind it.
    chances_K = np.array([math.comb(K - 1 - i, n - 1) / math.comb(K, n) for i in range(K)])
    return float((sorted_BK * chances_K).sum(axis=1).mean())


def best_of_divergence(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G.3)."""
    return math.log(n) - (n - 1) / n
