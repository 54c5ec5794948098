"""What the updates of PPO learn from, against loops in NumPy: whitened rewards, discounts, advantages and returns."""

import numpy as np
import pytest

from lmjax.settings import RewardSettings

from .conftest import make_learner
from .test_ppo import SCORES, as_numpy, experienced, shaped


def estimated(rewards, values, lengths, discount, decay):
    """Advantages (Schulman et al. 2016, equation 16) as double sums over the rest of each response."""
    out = np.zeros_like(rewards)
    for row, n in enumerate(lengths):
        after = np.append(values[row, 1:n], 0.0)
        surprise = rewards[row, :n] + discount * after - values[row, :n]
        for t in range(n):
            out[row, t] = sum((discount * decay) ** (k - t) * surprise[k] for k in range(t, n))
    return out


@pytest.mark.parametrize(("whiten", "discount"), [(True, 1.0), (False, 0.7), (True, 0.7)])
def test_rewards_are_whitened_and_returns_discounted(whiten, discount):
    shaping = RewardSettings(no_eos_penalty=1.0, whiten=whiten)
    learner = make_learner(shaping=shaping, discount=discount, gae_lambda=0.9)
    _, rollout, data, _ = experienced(learner)
    old, reference, values, mask = as_numpy(data, "old", "reference", "old_values", "mask")
    lengths, live = mask.sum(axis=1).astype(int), mask > 0
    assert len(set(lengths)) > 1
    rewards = -0.1 * (old - reference) * mask  # 0.1: the coefficient of the KL penalty
    rewards[np.arange(4), lengths - 1] += shaped(SCORES, rollout.finished)
    if whiten:  # to deviation 1 over the tokens of the batch, their mean kept
        mean, deviation = rewards[live].mean(), rewards[live].std()
        rewards = np.where(live, (rewards - mean) / deviation + mean, 0.0)
        assert rewards[live].std() == pytest.approx(1.0) and abs(deviation - 1.0) > 0.05
    advantages = estimated(rewards, values, lengths, discount, 0.9)
    np.testing.assert_allclose(np.asarray(data["returns"])[live], (advantages + values)[live], atol=1e-4)
    white = (advantages - advantages[live].mean()) / advantages[live].std()
    np.testing.assert_allclose(data["advantages"], np.where(live, white, 0.0), atol=1e-4)
