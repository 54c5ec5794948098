"""Which source each row of training comes from, when sources are mixed by weight (GPT-3, Brown et al. 2020, Table 2.2).

The rows follow a fixed periodic pattern in which every source is at all times within one row of its share: a source's
n-th row has a window of places, and each place goes to the source whose window closes first (earliest deadline first,
which keeps all windows; Liu and Layland 1973).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from lmjax.errors import UserError

LONGEST_PERIOD = 1 << 16


class Mixture:
    """The pattern for `weights`, which need not sum to 1.

    Weights whose decimal forms have a common period of at most 65,536 rows are exact, others rounded to 1/65,536.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Raises UserError for a weight too small for one row per period."""
        self.rows_per_period = _whole_shares(weights)
        self.period = sum(self.rows_per_period)
        self._source = _earliest_deadline_first(self.rows_per_period)
        self._ordinal = np.zeros(
            self.period, np.int64
        )  # the number of a place among those of its source, in one period
        for source, rows in enumerate(self.rows_per_period):
            self._ordinal[self._source == source] = np.arange(rows)
        self._rows_per_period = np.array(self.rows_per_period, np.int64)

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row of training, counted from 0, and its number among the rows of that source."""
        if len(self.rows_per_period) == 1:
            return np.zeros_like(rows), rows
        periods, places = np.divmod(rows, self.period)
        sources = self._source[places]
        return sources, periods * self._rows_per_period[sources] + self._ordinal[places]

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each source."""
        periods, places = divmod(rows, self.period)
        partial = np.bincount(self._source[:places], minlength=len(self.rows_per_period))
        return [periods * share + int(part) for share, part in zip(self.rows_per_period, partial, strict=True)]


def _whole_shares(weights: Sequence[float]) -> list[int]:
    """Rows per period of each source, in the same proportions as the weights."""
    shares = [Fraction(str(weight)) for weight in weights]
    shares = [share / sum(shares) for share in shares]
    period = lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    rows = [int(share * LONGEST_PERIOD) for share in shares]
    by_remainder = sorted(range(len(rows)), key=lambda source: rows[source] - shares[source] * LONGEST_PERIOD)
    for source in by_remainder[: LONGEST_PERIOD - sum(rows)]:
        rows[source] += 1
    for source, count in enumerate(rows):
        if count == 0:
            raise UserError(
                f"data.train[{source}].weight = {weights[source]!r}: expected at least 1/{LONGEST_PERIOD} of the sum "
                f"of the weights {list(weights)} (of the rows, where no source has a weight); raise it, or leave the "
                "source out"
            )
    return rows


def _earliest_deadline_first(shares: Sequence[int]) -> np.ndarray:
    """The source of each place of one period.

    Row n of a source with share s is placed from n * period / s on and before (n + 1) * period / s.
    """
    period = sum(shares)
    placed = [0] * len(shares)
    pattern = np.zeros(period, np.int64)
    for place in range(period):
        released = (source for source, share in enumerate(shares) if placed[source] * period < share * (place + 1))
        chosen = min(released, key=lambda source: -(-(placed[source] + 1) * period // shares[source]))
        pattern[place] = chosen
        placed[chosen] += 1
    return pattern
