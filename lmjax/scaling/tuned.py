"""Rate and batch of a run from the best runs of a sweep: power laws of their parameters.

In: rows of a sweep's table. Out: a rule (lmjax/scaling/rules.py) for runs of other sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.rules import Hyperparameters, Rule, Trained, whole_rows
from lmjax.scaling.sweep_table import DONE, Row

RATE, BATCH, LENGTH, STEPS = "optimizer.learning_rate", "data.batch_size", "data.sequence_length", "train.steps"
WARMUP = "optimizer.schedule.warmup"


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The row of least loss of each budget; where rows name none, of each number of parameters."""
    best: dict[float, Row] = {}
    for row in rows:
        if row.get("status") == DONE and row.get("loss") is not None:
            key = row.get("budget") or row["parameters"]
            if key not in best or row["loss"] < best[key]["loss"]:
                best[key] = row
    return list(best.values())


def tuned(rows: Sequence[Row]) -> Rule:
    """Power laws of rate and of tokens a batch through the best rows; the mean fraction of warmup of their steps.

    Raises UserError where the rows do not tell them.
    """
    best = [row for row in best_rows(rows) if all(row.get(name) for name in (RATE, BATCH, LENGTH, STEPS))]
    if not best:
        raise UserError(f"no row tells {RATE}, {BATCH}, {LENGTH} and {STEPS}; give --rule for rate and batch")
    sizes = [float(row["parameters"]) for row in best]
    rate_law = _power_law(sizes, [row[RATE] for row in best])
    batch_law = _power_law(sizes, [row[BATCH] * row[LENGTH] for row in best])
    warmup = float(np.mean([(row.get(WARMUP) or 0) / row[STEPS] for row in best]))

    def rule(trained: Trained) -> Hyperparameters:
        size = trained.counted.parameters
        rate, tokens = (law[0] * size ** law[1] for law in (rate_law, batch_law))
        rows = whole_rows(tokens, trained)
        steps = trained.tokens / (rows * trained.sequence_length)
        reason = (
            f"from the best of {len(best)} budgets: rate {rate_law[0]:.3g} N^{rate_law[1]:.3f} = {rate:.3g}, batch "
            f"{batch_law[0]:.3g} N^{batch_law[1]:.3f} = {tokens:,.0f} tokens ({rows} rows of "
            f"{trained.sequence_length}), {warmup:.1%} of warmup"
        )
        return Hyperparameters(rate, rows, math.floor(warmup * steps), reason)

    return rule


def _power_law(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(k, p) of k N^p by least squares on logs; of one size alone, p = 0."""
    x, y = np.log(sizes), np.log(values)
    if len(np.unique(x)) < 2:
        return float(np.exp(y.mean())), 0.0
    power, log_k = np.polyfit(x, y, 1)
    return float(np.exp(log_k)), float(power)
