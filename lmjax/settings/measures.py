"""What is measured of the models that a pipeline makes, at the end of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import NonNegativeInt, PositiveInt, Settings, require_local


@dataclass(frozen=True)
class MeasureSettings(Settings):
    """Which measures are made, after every stage that trains a model and of what the first of them starts from.

    The report of the pipeline has a table of them, a column for each model. Of a reward model, the suite orders the
    rankings alone.
    """

    data: str = "."  # the folder that holds the sets, each in a folder of its own
    suite: Literal["", "hhh"] = "hhh"  # as `lmjax evaluate --suite`; "" is none
    tasks: tuple[str, ...] = ()  # sets of questions, as `lmjax evaluate --task`
    shots: NonNegativeInt = 0  # solved questions before each of a task's
    limit: PositiveInt | None = None  # examples of each set; None takes all

    def check(self) -> None:
        require(bool(self.data), "data", "", "the folder that holds the sets", "name it")
        require_local("data", self.data)
        require(bool(self.suite or self.tasks), "suite", "", "a suite or tasks", 'use "hhh"')
