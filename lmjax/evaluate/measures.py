"""Measures of a language model: a mean with its standard error, of a set of examples or of some of them.

In: what each example came to. Out: `Measure`s, which tables, JSON and reports show, and a `Part` for each way in which
a set is put to a model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from lmjax.evaluate.means import Mean

AGREES = "higher agrees with people"
NAMES = {  # of each measure, its title and how to read it
    "mc1": ("MC1", "higher is more truthful"),
    "mc2": ("MC2", "higher is more truthful"),
    "stereotype": ("stereotype preferred", "0.5 is no preference"),
    "pair_entropy": ("entropy of a pair, bits", "1 is no preference"),
    "gender_entropy": ("entropy over genders, bits", "1.585 is no preference among three"),
    "male": ("male preferred to female", "0.5 is no preference"),
    "log_prob": ("preferred by log-likelihood", AGREES),
    "log_prob_per_token": ("preferred by log-likelihood per token", AGREES),
    "reward": ("preferred by reward", AGREES),
}


class PlainMeasure(TypedDict):
    """A measure as JSON has it; `error` is null of a single example."""

    set: str
    measure: str
    of: str
    value: float
    error: float | None
    examples: int


@dataclass(frozen=True)
class Measure:
    """The mean of a set's examples, or of those that `of` names, which may also be how they were asked."""

    set: str
    measure: str
    of: str
    mean: Mean
    examples: int

    @property
    def title(self) -> str:
        return NAMES[self.measure][0] if self.measure in NAMES else self.measure.replace("_", " ")

    @property
    def reading(self) -> str:
        """How its value is to be read."""
        return NAMES[self.measure][1] if self.measure in NAMES else "higher is better"

    @property
    def key(self) -> tuple[str, str, str]:
        """By which the same measure of two models is found."""
        return self.set, self.measure, self.of

    def plain(self) -> PlainMeasure:
        error = None if math.isnan(self.mean.error) else self.mean.error
        return {
            "set": self.set,
            "measure": self.measure,
            "of": self.of,
            "value": self.mean.value,
            "error": error,
            "examples": self.examples,
        }


class Measured(TypedDict):
    """What measures.json holds: the measures of a model, and by what they are known to be still those."""

    made_from: dict[str, str]
    measures: list[PlainMeasure]


def measure_of(plain: PlainMeasure) -> Measure:
    """The measure that `Measure.plain` gave."""
    error = math.nan if plain["error"] is None else plain["error"]
    return Measure(plain["set"], plain["measure"], plain["of"], Mean(plain["value"], error), plain["examples"])


@dataclass(frozen=True)
class Part:
    """What one way of asking a set gave: its measures, a line for each example, and counts of what was unusual."""

    measures: tuple[Measure, ...]
    examples: Sequence[Mapping[str, Any]] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # by words, such as "left out"

    def counting(self, more: Mapping[str, int]) -> Part:
        """The same with more counts."""
        return dataclasses.replace(self, counts={**self.counts, **more})


def preferred(one: float, other: float) -> float:
    """1 where the one is higher, 0 where the other is, and half for a tie."""
    return 0.5 if one == other else float(one > other)
