"""The validation of every stage: sums over the batches of each source, and the numbers of each and of all of them.

In: validation batches and a function from the number of a batch to its sums. Out: the sums of each source, which add up
to those of the whole. Where evaluation.batches is set, every source gives as many of its first batches as the others.
A stop is honoured between two batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmjax.data.loader import ValidationBatches
from lmjax.objective.weighted import Weighted, added_up
from lmjax.training.loop import Values
from lmjax.training.stop import StopRequest

Sums = dict[str, Weighted]


def sums_by_source(
    reading: Callable[[int], Sums], batches: ValidationBatches, most: int | None, stop: StopRequest
) -> list[Sums]:
    """What `reading` gives of the batches with these numbers, added up for each source. Raises Interrupted."""

    def read(numbers: range) -> Iterator[Sums]:
        for number in numbers:
            stop.check()
            yield reading(number)

    return [added_up(read(numbers)) for numbers in batches.dealt(most)]


def values_of(names: Sequence[str], sums: Sequence[Sums], describe: Callable[[Sums], Values]) -> Values:
    """The numbers of the whole, and where there are several sources those of each, as NUMBER/SOURCE."""
    whole = describe(added_up(sums))
    return whole | by_source(names, [describe(own) for own in sums])


def values_of_sources(
    names: Sequence[str], found: Sequence[Any], describe: Callable[[Sequence[Any]], Values]
) -> Values:
    """As `values_of`, of what is no sum: `describe` takes what was found of one source, or of all of them."""
    return describe(found) | by_source(names, [describe([own]) for own in found])


def by_source(names: Sequence[str], values: Sequence[Values]) -> Values:
    """The numbers of each source under their names; nothing where there is one source alone."""
    if len(names) < 2:
        return {}
    each = zip(names, values, strict=True)
    return {f"{number}/{name}": value for name, own in each for number, value in own.items()}


def perplexity_of(loss: float) -> float:
    """The exponential of a loss in nats, kept from overflowing."""
    return math.exp(min(loss, 700.0))


def mean_of(pair: Weighted) -> float:
    """The mean, on the host; NaN where there is nothing to average."""
    return float(pair.sum) / float(pair.weight) if pair.weight else math.nan
