"""From log-probabilities, values and scores of sampled responses to rewards and advantages: functions of arrays.

Arrays are [B, T]: B responses of at most T tokens. A mask is 1.0 on a response's tokens, end-of-text included, and 0.0
on padding; a response's tokens are contiguous. Every result is 0 where the mask is 0, whatever values the arguments
have there. Log-probabilities and divergences are in nats.
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
    log_ratio_BT = log_probs_BT - reference_BT
    if kind == "k1":
        return log_ratio_BT
    if kind == "k2":
        return 0.5 * log_ratio_BT**2
    return jnp.expm1(-log_ratio_BT) + log_ratio_BT


def last_token(mask_BT: jax.Array) -> jax.Array:
    """1.0 at the last token that the mask shows of each response, 0.0 elsewhere; all 0.0 for an empty response."""
    next_mask_BT = jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    later_tokens_BT = jnp.flip(jnp.cumsum(jnp.flip(next_mask_BT, 1), axis=1), 1)
    return jnp.where((mask_BT > 0) & (later_tokens_BT == 0), 1.0, 0.0)


def penalised_rewards(
    scores_B: jax.Array, kl_BT: jax.Array, mask_BT: jax.Array, coefficient: jax.Array | float
) -> jax.Array:
    """Each token's reward: -coefficient x kl, plus the response's score at its last token."""
    penalty_BT = jnp.where(mask_BT > 0, -coefficient * kl_BT, 0.0)
    return penalty_BT + last_token(mask_BT) * scores_B[:, None]


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the values whose mask is 1; 0 where there are none."""
    count = mask.sum()
    return jnp.where(mask > 0, values, 0.0).sum() / jnp.maximum(count, 1.0)


def deviations(values: jax.Array, mask: jax.Array, axis: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Values minus their mean along `axis`, both over what the mask shows (0 elsewhere), and that mean with its axes.

    The mean is computed of the differences from the largest value. Equal values therefore deviate by exactly 0; with
    the plain mean they need not, because (n x value) / n can differ from value by rounding.
    """
    unmasked = mask > 0
    largest = jnp.max(values, axis, keepdims=True, where=unmasked, initial=-jnp.inf)
    difference = jnp.where(unmasked, values - largest, 0.0)
    mean = difference.sum(axis, keepdims=True) / jnp.maximum(unmasked.sum(axis, keepdims=True), 1)
    return jnp.where(unmasked, difference - mean, 0.0), largest + mean


def whiten(values_BT: jax.Array, mask_BT: jax.Array, *, centre: bool) -> jax.Array:
    """Values divided by their standard deviation over all tokens of the batch (population variance).

    With `centre` their mean becomes 0 (advantages); without it the mean is unchanged (rewards; Ziegler et al. 2019).
    Equal values become 0 with `centre` and are unchanged without it.
    """
    centred_BT, mean_11 = deviations(values_BT, mask_BT)
    whitened_BT = centred_BT * jax.lax.rsqrt(masked_mean(centred_BT**2, mask_BT) + 1e-8)
    return jnp.where(mask_BT > 0, whitened_BT if centre else whitened_BT + mean_11, 0.0)


def advantages_and_returns(
    rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, *, discount: float, gae_lambda: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), and the returns, advantages + values.

    `values_BT` are the value model's predictions before each token. A response is an episode: after its last token the
    value is 0.
    """
    unmasked_BT = mask_BT > 0
    values_BT = jnp.where(unmasked_BT, values_BT, 0.0)
    next_values_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    td_error_BT = jnp.where(unmasked_BT, rewards_BT + discount * next_values_BT - values_BT, 0.0)

    def accumulate(next_advantage_B: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        td_error_B, unmasked_B = at
        advantage_B = jnp.where(unmasked_B, td_error_B + discount * gae_lambda * next_advantage_B, 0.0)
        return advantage_B, advantage_B

    zeros_B = jnp.zeros(rewards_BT.shape[0], td_error_BT.dtype)
    _, advantages_TB = jax.lax.scan(accumulate, zeros_B, (td_error_BT.T, unmasked_BT.T), reverse=True)
    return advantages_TB.T, advantages_TB.T + values_BT


def adapted_coefficient(
    coefficient: jax.Array, kl: jax.Array, *, target: float, episodes: int, horizon: float
) -> jax.Array:
    """The KL coefficient after `episodes` responses whose mean divergence was `kl` nats (Ziegler et al. 2019, 2.2).

    It grows if the divergence is above `target` and shrinks if it is below, by at most a fifth per `horizon` episodes.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
