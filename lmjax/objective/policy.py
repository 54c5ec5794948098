"""Losses of a policy: PPO's clipped losses, PPO-ptx, DPO and GRPO, each a function of arrays.

Arrays are [B, T] over the tokens of sampled responses, with a mask of 1.0 on tokens and 0.0 on padding, or [B] over
responses or pairs. Every loss is a (sum, weight) pair; the weight of a sum over tokens is the number of tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.objective.advantage import deviations, estimate_kl
from lmjax.objective.rankings import ranking_loss
from lmjax.objective.weighted import Metrics, Weighted


def masked(values: jax.Array, mask: jax.Array) -> Weighted:
    """The sum of the values whose mask is 1, and their number as the weight."""
    return Weighted(jnp.where(mask > 0, values, 0.0).sum(), mask.sum())


def clipped_policy_loss(
    log_probs_BT: jax.Array, old_BT: jax.Array, advantages_BT: jax.Array, mask_BT: jax.Array, *, clip: float
) -> tuple[Weighted, Metrics]:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) per token, r = p / p_old (Schulman et al. 2017, equation 7).

    `old_BT` are the log-probabilities under the policy that sampled the tokens; they and the advantages have no
    gradient. An infinite `clip` clips nothing. Metrics: `ratio`, `ratio_variance` (around 1), `clip_fraction`, and
    `update_kl`, the k3 estimate of the divergence from the policy that sampled, in nats per token.
    """
    loss_BT, metrics = _surrogate(log_probs_BT, old_BT, advantages_BT, mask_BT, clip)
    return masked(loss_BT, mask_BT), metrics


def clipped_value_loss(
    values_BT: jax.Array, old_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array, *, clip: float
) -> tuple[Weighted, Metrics]:
    """Half the squared error of a token's value or of its clipped value, whichever is larger.

    The clipped value is within `clip` of `old_BT`, the value when the tokens were sampled. Metrics: `value_error`, the
    unclipped squared error, and `value_clip_fraction`.
    """
    old_BT, returns_BT = jax.lax.stop_gradient((old_BT, returns_BT))
    values_BT = jnp.where(mask_BT > 0, values_BT, 0.0)
    clipped_BT = jnp.clip(values_BT, old_BT - clip, old_BT + clip)
    error_BT, clipped_error_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    return masked(0.5 * jnp.maximum(error_BT, clipped_error_BT), mask_BT), {
        "value_error": masked(error_BT, mask_BT),
        "value_clip_fraction": masked((clipped_error_BT > error_BT).astype(jnp.float32), mask_BT),
    }


def explained_variance(values_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns) over tokens: 1 for a perfect value model, 0 for a constant one."""

    def variance(x_BT: jax.Array) -> jax.Array:
        return masked(deviations(x_BT, mask_BT)[0] ** 2, mask_BT).mean()

    total = variance(returns_BT)
    return jnp.where(total > 0, 1.0 - variance(returns_BT - values_BT) / jnp.where(total > 0, total, 1.0), 0.0)


def ptx_weights(weights_BS: jax.Array, mask_BT: jax.Array, coefficient: float) -> jax.Array:
    """Token weights of pretraining rows, scaled so that PPO-ptx's objective is one sum divided by one weight.

    The objective is (policy loss per response token) + coefficient x (cross-entropy per pretraining token). It equals
    the policy loss's sum plus the cross-entropy's sum under the scaled weights, divided by the mask's sum, also where
    the batch is split into microbatches, provided that the weights were scaled for the whole batch.
    """
    total = weights_BS.sum()
    return weights_BS * (coefficient * mask_BT.sum() / jnp.where(total > 0, total, 1.0))


def dpo_loss(
    log_probs_BK: jax.Array,
    reference_BK: jax.Array,
    ranks_BK: jax.Array,
    present_BK: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Weighted, Metrics]:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7) from the log-probabilities of answers.

    It is the ranking loss of the implicit rewards beta x (log p - log p_reference), for K ranked answers as for pairs;
    see `ranking_loss` for the other arguments and the metrics.
    """
    rewards_BK = beta * (log_probs_BK - jax.lax.stop_gradient(reference_BK))
    return ranking_loss(rewards_BK, ranks_BK, present_BK, label_smoothing=label_smoothing)


def group_advantages(scores_B: jax.Array, group: int) -> jax.Array:
    """GRPO's advantages: a response's score minus its group's mean, divided by the group's standard deviation.

    `group` consecutive responses answer one prompt (Shao et al. 2024, section 4.1.2; population variance). The
    advantages of a group with equal scores are exactly 0.
    """
    scores_GK = scores_B.reshape(-1, group)
    centred_GK, _ = deviations(scores_GK, jnp.ones_like(scores_GK), axis=1)
    centred_GK /= jnp.sqrt((centred_GK**2).mean(axis=1, keepdims=True)) + 1e-4
    return centred_GK.reshape(-1)


def grpo_loss(
    log_probs_BT: jax.Array,
    old_BT: jax.Array,
    reference_BT: jax.Array,
    advantages_B: jax.Array,
    mask_BT: jax.Array,
    *,
    clip: float,
    kl_coefficient: float,
) -> tuple[Weighted, Metrics]:
    """GRPO (Shao et al. 2024, equation 3): the clipped policy loss plus kl_coefficient x k3, averaged per response.

    Every response that has tokens has weight 1, whatever its length.
    """
    advantages_BT = jnp.broadcast_to(advantages_B[:, None], mask_BT.shape)
    loss_BT, metrics = _surrogate(log_probs_BT, old_BT, advantages_BT, mask_BT, clip)
    log_ratio_BT = jnp.where(mask_BT > 0, log_probs_BT - jax.lax.stop_gradient(reference_BT), 0.0)
    kl_BT = estimate_kl(log_ratio_BT, jnp.zeros_like(log_ratio_BT), "k3")
    length_B = mask_BT.sum(axis=1)
    token_weights_BT = mask_BT / jnp.maximum(length_B, 1.0)[:, None]
    loss = masked((loss_BT + kl_coefficient * kl_BT) * token_weights_BT, mask_BT).sum
    return Weighted(loss, (length_B > 0).sum().astype(jnp.float32)), metrics | {"kl_per_token": masked(kl_BT, mask_BT)}


def _surrogate(
    log_probs_BT: jax.Array, old_BT: jax.Array, advantages_BT: jax.Array, mask_BT: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """The clipped loss of each token, and metrics of the probability ratios."""
    old_BT, advantages_BT = jax.lax.stop_gradient((old_BT, advantages_BT))
    log_ratio_BT = jnp.where(mask_BT > 0, log_probs_BT - old_BT, 0.0)
    ratio_BT = jnp.exp(log_ratio_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip, 1.0 + clip)
    loss_BT = -jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return loss_BT, {
        "ratio": masked(ratio_BT, mask_BT),
        "ratio_variance": masked((ratio_BT - 1.0) ** 2, mask_BT),
        "clip_fraction": masked((ratio_BT != clipped_BT).astype(jnp.float32), mask_BT),
        "update_kl": masked(estimate_kl(-log_ratio_BT, jnp.zeros_like(log_ratio_BT), "k3"), mask_BT),
    }
