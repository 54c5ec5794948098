"""Losses of a policy: PPO's clipped losses, PPO-ptx, DPO and GRPO, each a function of arrays.

Arrays are [B, T] over the tokens of sampled responses, with a mask of 1.0 on tokens and 0.0 on padding, or [B] over
responses or pairs. Every loss is a (sum, weight) pair: a sum over tokens weighs as many tokens as the mask has.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.objective.advantage import deviations, estimate_kl
from lmjax.objective.rankings import ranking_loss
from lmjax.objective.weighted import Metrics, Weighted


def masked(values: jax.Array, mask: jax.Array) -> Weighted:
    """The values where the mask is 1, over how many these are."""
    return Weighted(jnp.where(mask > 0, values, 0.0).sum(), mask.sum())


def clipped_policy_loss(
    log_probs_BT: jax.Array, old_BT: jax.Array, advantages_BT: jax.Array, mask_BT: jax.Array, *, clip: float
) -> tuple[Weighted, Metrics]:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) per token, r = p / p_old (Schulman et al. 2017, equation 7).

    `old_BT` are the log-probabilities when the tokens were sampled; no gradient goes through them or the advantages.
    With `clip` infinite nothing is clipped. Metrics: `ratio`, `ratio_variance` (about 1), `clip_fraction`, and
    `update_kl`, the k3 estimate of how far the policy has moved since it sampled, in nats per token.
    """
    loss_BT, metrics = _surrogate(log_probs_BT, old_BT, advantages_BT, mask_BT, clip)
    return masked(loss_BT, mask_BT), metrics


def clipped_value_loss(
    values_BT: jax.Array, old_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array, *, clip: float
) -> tuple[Weighted, Metrics]:
    """Half the squared error of a token's value, the larger of the plain and the clipped one.

    The clipped value is within `clip` of the value at sampling time, `old_BT`. Metrics: `value_error`, the unclipped
    squared error, and `value_clip_fraction`.
    """
    old_BT, returns_BT = jax.lax.stop_gradient((old_BT, returns_BT))
    values_BT = jnp.where(mask_BT > 0, values_BT, 0.0)
    near_BT = jnp.clip(values_BT, old_BT - clip, old_BT + clip)
    plain_BT, clipped_BT = (values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2
    return masked(0.5 * jnp.maximum(plain_BT, clipped_BT), mask_BT), {
        "value_error": masked(plain_BT, mask_BT),
        "value_clip_fraction": masked((clipped_BT > plain_BT).astype(jnp.float32), mask_BT),
    }


def explained_variance(values_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns) over tokens: 1 for a perfect value model, 0 for a constant one."""

    def variance(x_BT: jax.Array) -> jax.Array:
        return masked(deviations(x_BT, mask_BT)[0] ** 2, mask_BT).mean()

    total = variance(returns_BT)
    return jnp.where(total > 0, 1.0 - variance(returns_BT - values_BT) / jnp.where(total > 0, total, 1.0), 0.0)


def mix_weights(weights_BS: jax.Array, mask_BT: jax.Array, coefficient: float) -> jax.Array:
    """Token weights of pretraining rows with which PPO-ptx's objective is one sum over one weight.

    The objective is (policy loss per response token) + coefficient x (cross-entropy per pretraining token). With these
    weights the cross-entropy's sum, added to the policy loss's sum and divided by the mask's sum, gives that, and
    still does when the batch is cut into microbatches: call this on the whole batch.
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
    """Direct preference optimisation (Rafailov et al. 2023, equation 7) from the log-probabilities of whole answers.

    It is the ranking loss of the implicit rewards beta x (log p - log p_reference), so that rankings of K answers are
    taken as they are; see `ranking_loss` for the other arguments and the metrics.
    """
    rewards_BK = beta * (log_probs_BK - jax.lax.stop_gradient(reference_BK))
    return ranking_loss(rewards_BK, ranks_BK, present_BK, label_smoothing=label_smoothing)


def group_advantages(scores_B: jax.Array, group: int, *, divide: bool = True) -> jax.Array:
    """GRPO's advantages: a response's score less the mean of its group, over the group's standard deviation.

    Responses to one prompt are `group` neighbours (Shao et al. 2024, section 4.1.2; population variance). Without
    `divide` they are only centred (Liu et al. 2025). Those of a group whose scores are equal are exactly 0.
    """
    scores_GK = scores_B.reshape(-1, group)
    centred_GK, _ = deviations(scores_GK, jnp.ones_like(scores_GK), axis=1)
    if divide:
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
    """GRPO (Shao et al. 2024, equation 3): the clipped policy loss plus kl_coefficient x k3, a mean within responses.

    A response that has tokens weighs 1, however long it is.
    """
    advantages_BT = jnp.broadcast_to(advantages_B[:, None], mask_BT.shape)
    loss_BT, metrics = _surrogate(log_probs_BT, old_BT, advantages_BT, mask_BT, clip)
    apart_BT = jnp.where(mask_BT > 0, log_probs_BT - jax.lax.stop_gradient(reference_BT), 0.0)
    kl_BT = estimate_kl(apart_BT, jnp.zeros_like(apart_BT), "k3")
    length_B = mask_BT.sum(axis=1)
    share_BT = mask_BT / jnp.maximum(length_B, 1.0)[:, None]
    loss = masked((loss_BT + kl_coefficient * kl_BT) * share_BT, mask_BT).sum
    return Weighted(loss, (length_B > 0).sum().astype(jnp.float32)), metrics | {"kl_per_token": masked(kl_BT, mask_BT)}


def _surrogate(
    log_probs_BT: jax.Array, old_BT: jax.Array, advantages_BT: jax.Array, mask_BT: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """The clipped loss of each token, and what is known of the ratios."""
    old_BT, advantages_BT = jax.lax.stop_gradient((old_BT, advantages_BT))
    change_BT = jnp.where(mask_BT > 0, log_probs_BT - old_BT, 0.0)
    ratio_BT = jnp.exp(change_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip, 1.0 + clip)
    loss_BT = -jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return loss_BT, {
        "ratio": masked(ratio_BT, mask_BT),
        "ratio_variance": masked((ratio_BT - 1.0) ** 2, mask_BT),
        "clip_fraction": masked((ratio_BT != clipped_BT).astype(jnp.float32), mask_BT),
        "update_kl": masked(estimate_kl(-change_BT, jnp.zeros_like(change_BT), "k3"), mask_BT),
    }
