"""An n-gram model of tokens with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999).

In: documents as token ids. Out: the probability of a token after those before it; over the vocabulary they add up to
one. The highest order counts occurrences; each lower one counts the different tokens that a sequence follows. Every
count loses its order's discount, n1 / (n1 + 2 n2) of the sequences counted once and twice, to the next lower order;
below the single tokens all of the vocabulary are equally likely.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Context = tuple[int, ...]


class KneserNey:
    def __init__(self, documents: Iterable[Sequence[int]], order: int, vocabulary: int, boundary: int) -> None:
        """`boundary` is the token before and after every document; `vocabulary` counts it, too."""
        self._order, self._vocabulary, self._boundary = order, vocabulary, boundary
        grams = Counter[Context]()
        for ids in documents:
            padded = self._padded([*ids, boundary])
            grams.update(tuple(padded[at : at + order]) for at in range(len(padded) - order + 1))
        self._counts: list[Counter[Context]] = [grams]  # of the sequences of each length, the longest first
        for _ in range(order - 1):
            grams = Counter(gram[1:] for gram in grams)
            self._counts.append(grams)
        self._counts.reverse()
        self._discounts = [_discount(own) for own in self._counts]
        self._totals, self._followers = (
            [Counter[Context]() for _ in range(order)],
            [Counter[Context]() for _ in range(order)],
        )
        for own, totals, followers in zip(self._counts, self._totals, self._followers, strict=True):
            for gram, count in own.items():
                totals[gram[:-1]] += count
                followers[gram[:-1]] += 1

    def _padded(self, ids: Sequence[int]) -> list[int]:
        return [self._boundary] * (self._order - 1) + list(ids)

    def probability(self, token: int, before: Sequence[int]) -> float:
        """Of a token after the last `order` - 1 tokens of `before`."""
        context = tuple(before[len(before) - self._order + 1 :])
        found = 1.0 / self._vocabulary
        for length in range(self._order):
            own = context[len(context) - length :]
            total = self._totals[length][own]
            if not total:
                break  # no longer context has been seen, either
            discount = self._discounts[length]
            count = self._counts[length][(*own, token)]
            found = (max(count - discount, 0.0) + discount * self._followers[length][own] * found) / total
        return found

    def log_prob(self, ids: Sequence[int]) -> float:
        """Nats of a text's tokens, without the end of the text."""
        padded, first = self._padded(ids), self._order - 1
        return math.fsum(
            math.log(self.probability(padded[at], padded[:at][-first:])) for at in range(first, len(padded))
        )


def _discount(counts: Counter[Context]) -> float:
    of_counts = Counter(counts.values())
    once, twice = of_counts[1], of_counts[2]
    return once / (once + 2 * twice) if once else 0.5
