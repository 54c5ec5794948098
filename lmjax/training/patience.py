"""Early stopping: a run ends once its evaluations have not improved for a while (Prechelt 1998)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmjax.checkpoints.evaluated import worth


@dataclass
class Patience:
    """Counts the evaluations behind the best one. None: a run never ends early.

    It is a function of the evaluations so far, which a resumed run reads from its record.
    """

    evaluations: int | None  # without a better one, after which the run ends
    best_by: str
    values: list[float] = field(default_factory=list)

    def see(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """The evaluations among lines of the record, in their order; lines of other things are passed over."""
        self.values += [worth({self.best_by: line[self.best_by]}) for line in lines if self.best_by in line]

    @property
    def exhausted(self) -> bool:
        if self.evaluations is None or not self.values:
            return False
        best = self.values.index(max(self.values))  # the first of equals: an equal one is no improvement
        return len(self.values) - 1 - best >= self.evaluations
