"""Losses and metrics as (sum, weight) pairs, and the auxiliary losses that a model adds to a loss.

In: `Weighted` pairs of batches, and a model's `Outputs.aux`. Out: pairs that still add up over microbatches and
devices; the division by the global weight happens once, in `Weighted.mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from lmjax.data.batch import Batch
from lmjax.model.outputs import Auxiliary, Weighted

Metrics = dict[str, Weighted]

# (params, batch, rng) -> (loss, metrics); rng is None where there is no dropout.
LossFunction = Callable[[Any, Batch, jax.Array | None], tuple[Weighted, Metrics]]


def with_auxiliary(loss: Weighted, metrics: Metrics, aux: Auxiliary, weights: jax.Array) -> tuple[Weighted, Metrics]:
    """The loss with a model's auxiliary losses added to its mean, and the metrics with one more for each.

    `weights`, [B] or [B, T], are those of the rows, or of their tokens, in the loss: they sum up to `loss.weight`. An
    auxiliary loss is a mean within each row (see `Outputs`), and a row counts as much in it as in the loss:

        mean = loss.sum / loss.weight + sum_b weight_b aux_b / loss.weight.

    Where a token weighs 1 if it is real and 0 if not, that is the auxiliary loss's mean over all real tokens. Both
    terms are sums over rows, divided by the same weight, so that microbatches and devices may cut the batch between
    any two rows. The model has applied the coefficients. Raises ValueError for a name that a metric has.
    """
    if both := sorted(aux.keys() & metrics.keys()):
        raise ValueError(f"the auxiliary losses {both} have names of metrics: expected other names; rename them")
    total, added = loss.sum, {}
    for name, rows in aux.items():
        row_weights_B = weights.reshape(weights.shape[0], -1).sum(axis=1)
        added[name] = Weighted((row_weights_B * rows.mean()).sum(), loss.weight)
        total += added[name].sum
    return Weighted(total, loss.weight), metrics | added


def added_up(readings: Iterable[Metrics]) -> Metrics:
    """The sums of many batches' readings, on the host; {} where there are no readings.

    Each is fetched after the next was dispatched. Otherwise programs queue up: XLA's CPU client takes 32 per device,
    and then launches the next one on the threads that the collectives of those before it are waiting for.
    """
    total: Metrics = {}

    def add(fetched: Metrics) -> None:
        for name, pair in fetched.items():
            total[name] = total[name] + pair if name in total else pair

    waiting: Metrics = {}
    for reading in readings:
        add(jax.device_get(waiting))
        waiting = reading
    add(jax.device_get(waiting))
    return total
