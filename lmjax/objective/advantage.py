"""From log-probabilities, values and scores of sampled responses to rewards and advantages: functions of arrays.

Arrays are [B, T]: B responses of T tokens at most. A mask is 1.0 on a response's tokens, end-of-text included, and 0.0
on what pads it; a response's tokens are next to each other. Masked places are 0 in every result, whatever stands
there in the arguments. Log-probabilities and divergences are in nats.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

KLEstimator = Literal["k1", "k2", "k3"]


def estimate_kl(log_probs_BT: jax.Array, reference_BT: jax.Array, kind: KLEstimator) -> jax.Array:
    """Per-token estimates of KL(policy || reference) from tokens that the policy sampled (Schulman 2020).

    k1, log(p/q), is unbiased; k2, its square halved, has less variance and a bias; k3, q/p - 1 - log(q/p), is unbiased
    and never negative.
    """
    ratio_BT = log_probs_BT - reference_BT
    if kind == "k1":
        return ratio_BT
    if kind == "k2":
        return 0.5 * ratio_BT**2
    return jnp.expm1(-ratio_BT) + ratio_BT


def last_token(mask_BT: jax.Array) -> jax.Array:
    """1.0 at the last token of each response, found by mask and not by token; nowhere where there is none."""
    after_BT = jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    later_BT = jnp.flip(jnp.cumsum(jnp.flip(after_BT, 1), axis=1), 1)
    return jnp.where((mask_BT > 0) & (later_BT == 0), 1.0, 0.0)


def penalised_rewards(
    scores_B: jax.Array, kl_BT: jax.Array, mask_BT: jax.Array, coefficient: jax.Array | float
) -> jax.Array:
    """Each token's reward: -coefficient x kl, and on the last token the score of the response as well."""
    penalty_BT = jnp.where(mask_BT > 0, -coefficient * kl_BT, 0.0)
    return penalty_BT + last_token(mask_BT) * scores_B[:, None]


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of all values whose mask is 1; 0 where there is none."""
    count = mask.sum()
    return jnp.where(mask > 0, values, 0.0).sum() / jnp.maximum(count, 1.0)


def deviations(values: jax.Array, mask: jax.Array, axis: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Values less the mean of those along `axis` whose mask is 1 (0 where it is not), and that mean, its axes kept.

    The mean is taken of the distances from the largest value: equal values deviate by exactly 0, whatever they are, as
    n times a value over n need not be that value again.
    """
    shown = mask > 0
    largest = jnp.max(values, axis, keepdims=True, where=shown, initial=-jnp.inf)
    below = jnp.where(shown, values - largest, 0.0)
    mean = below.sum(axis, keepdims=True) / jnp.maximum(shown.sum(axis, keepdims=True), 1)
    return jnp.where(shown, below - mean, 0.0), largest + mean


def whiten(values_BT: jax.Array, mask_BT: jax.Array, *, centre: bool) -> jax.Array:
    """Values divided by their standard deviation over all tokens of the batch (population variance).

    With `centre` their mean becomes 0 (advantages); without, it stays what it was (rewards; Ziegler et al. 2019).
    Equal values become 0 with `centre`, and stay what they are without.
    """
    from_mean_BT, mean_11 = deviations(values_BT, mask_BT)
    white_BT = from_mean_BT * jax.lax.rsqrt(masked_mean(from_mean_BT**2, mask_BT) + 1e-8)
    return jnp.where(mask_BT > 0, white_BT if centre else white_BT + mean_11, 0.0)


def advantages_and_returns(
    rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, *, discount: float, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) with lambda = `decay`, and the returns.

    `values_BT` is what the value model says before each token. A response is a whole episode: after its last token
    the value is 0. The returns are advantages + values.
    """
    live_BT = mask_BT > 0
    values_BT = jnp.where(live_BT, values_BT, 0.0)
    next_values_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    surprise_BT = jnp.where(live_BT, rewards_BT + discount * next_values_BT - values_BT, 0.0)

    def back(later_B: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        surprise_B, live_B = now
        advantage_B = jnp.where(live_B, surprise_B + discount * decay * later_B, 0.0)
        return advantage_B, advantage_B

    start_B = jnp.zeros(rewards_BT.shape[0], surprise_BT.dtype)
    _, advantages_TB = jax.lax.scan(back, start_B, (surprise_BT.T, live_BT.T), reverse=True)
    return advantages_TB.T, advantages_TB.T + values_BT


def adapted_coefficient(
    coefficient: jax.Array, kl: jax.Array, *, target: float, episodes: int, horizon: float
) -> jax.Array:
    """The KL coefficient after `episodes` responses whose mean divergence was `kl` nats (Ziegler et al. 2019, 2.2).

    It grows while the divergence is above `target`, by at most a fifth per `horizon` episodes, and else it shrinks.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
