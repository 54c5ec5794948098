"""The loss of a reward model: from the scores of K ranked completions per prompt to a (sum, weight) pair.

Every prompt is one element of the sum, whatever its number of completions: the losses of its pairs are added and
divided by C(K, 2) (Ouyang et al. 2022, equation 1). In array names, B counts prompts and K, I and J completions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.objective.weighted import Metrics, Weighted


def ordered_pairs(ranks_BK: jax.Array, present_BK: jax.Array) -> jax.Array:
    """Boolean [B, K, K]: True at (i, j) where both are present and i is ranked better (lower); False for ties."""
    better_BIJ = ranks_BK[:, :, None] < ranks_BK[:, None, :]
    return better_BIJ & present_BK[:, :, None] & present_BK[:, None, :]


def answer_weights(ranks_BK: jax.Array, present_BK: jax.Array) -> jax.Array:
    """The weight of each completion in `ranking_loss`, [B, K]: a prompt's, shared equally by its completions."""
    prompts_B = ordered_pairs(ranks_BK, present_BK).any(axis=(1, 2))
    sizes_B1 = present_BK.sum(axis=1, keepdims=True).astype(jnp.float32)
    return jnp.where(present_BK & prompts_B[:, None], 1.0 / jnp.maximum(sizes_B1, 1.0), 0.0)


def ranking_loss(
    scores_BK: jax.Array,
    ranks_BK: jax.Array,
    present_BK: jax.Array,
    *,
    margins_BKK: jax.Array | None = None,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
) -> tuple[Weighted, Metrics]:
    """-log sigmoid(score_i - score_j) over the pairs of a prompt with i ranked above j, divided by C(K, 2).

    K is the number of present completions. Tied pairs are dropped from the sum, not from C(K, 2). A prompt without
    any ordered pair has weight 0, every other has weight 1. Pairs are rankings with K = 2.

    Args:
      scores_BK: the reward model's scores; those of absent completions are ignored.
      ranks_BK: integers, the lowest for the best; equal ranks are ties.
      present_BK: booleans, False for padding.
      margins_BKK: by how much i should be above j (Touvron et al. 2023, section 3.2.2); None means 0.
      label_smoothing: the assumed probability that the two completions of a pair are in the wrong order.
      centring: coefficient of (score_i + score_j)^2, which keeps scores around 0 (Eisenstein et al. 2023).

    Returns:
      The loss, and as metrics the `accuracy` and `margin` (score_i - score_j) over all ordered pairs, which count
      equally, and `score`, the mean over present completions.
    """
    scores_BK = jnp.where(present_BK, scores_BK.astype(jnp.float32), 0.0)
    pairs_BIJ = ordered_pairs(ranks_BK, present_BK)
    difference_BIJ = scores_BK[:, :, None] - scores_BK[:, None, :]
    logits_BIJ = difference_BIJ if margins_BKK is None else difference_BIJ - margins_BKK
    loss_BIJ = jax.nn.softplus(-logits_BIJ) + label_smoothing * logits_BIJ
    if centring:
        loss_BIJ += centring * (scores_BK[:, :, None] + scores_BK[:, None, :]) ** 2
    size_B = present_BK.sum(axis=1).astype(jnp.float32)
    all_pairs_B = jnp.maximum(size_B * (size_B - 1) / 2, 1.0)
    loss_B = jnp.where(pairs_BIJ, loss_BIJ, 0.0).sum(axis=(1, 2)) / all_pairs_B
    count = pairs_BIJ.sum().astype(jnp.float32)
    metrics = {
        "accuracy": Weighted((pairs_BIJ & (difference_BIJ > 0)).sum().astype(jnp.float32), count),
        "margin": Weighted(jnp.where(pairs_BIJ, difference_BIJ, 0.0).sum(), count),
        "score": Weighted(scores_BK.sum(), size_B.sum()),
    }
    return Weighted(loss_B.sum(), pairs_BIJ.any(axis=(1, 2)).sum().astype(jnp.float32)), metrics


def accuracy_by_size(
    scores_BK: jax.Array, ranks_BK: jax.Array, present_BK: jax.Array, largest: int
) -> dict[int, Weighted]:
    """For each K from 2 to `largest`: the ordered pairs that are scored in order, of prompts with K completions."""
    pairs_BIJ = ordered_pairs(ranks_BK, present_BK)
    correct_BIJ = pairs_BIJ & (scores_BK[:, :, None] > scores_BK[:, None, :])
    size_B = present_BK.sum(axis=1)
    out = {}
    for size in range(2, largest + 1):
        of_size_B11 = (size_B == size)[:, None, None]
        counts = [(counted & of_size_B11).sum().astype(jnp.float32) for counted in (correct_BIJ, pairs_BIJ)]
        out[size] = Weighted(*counts)
    return out


def calibration(
    scores_BK: jax.Array, ranks_BK: jax.Array, present_BK: jax.Array, bins: int = 10
) -> tuple[Weighted, Weighted]:
    """The calibration of the model's confidence in pairs, in `bins` equal bins of confidence from 0.5 to 1.

    The confidence in a pair is sigmoid(|score_i - score_j|). Returns the confidences and the correctly ordered pairs,
    [bins] each, both weighted by the number of pairs: the two means of a calibrated model are equal.
    """
    pairs_BIJ = ordered_pairs(ranks_BK, present_BK)
    difference_BIJ = scores_BK[:, :, None] - scores_BK[:, None, :]
    confidence_BIJ = jax.nn.sigmoid(jnp.abs(difference_BIJ))
    bin_BIJ = jnp.clip(jnp.floor((confidence_BIJ - 0.5) * 2 * bins), 0, bins - 1).astype(jnp.int32)
    in_bin = pairs_BIJ[..., None] & (bin_BIJ[..., None] == jnp.arange(bins)[None, None, None, :])
    count = in_bin.sum(axis=(0, 1, 2)).astype(jnp.float32)
    confidences = jnp.where(in_bin, confidence_BIJ[..., None], 0.0).sum(axis=(0, 1, 2))
    correct = (in_bin & (difference_BIJ > 0)[..., None]).sum(axis=(0, 1, 2)).astype(jnp.float32)
    return Weighted(confidences, count), Weighted(correct, count)
