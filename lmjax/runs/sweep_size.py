"""What a run of a sweep costs before it is run: parameters, tokens and FLOPs in each convention."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.data.ramp import BatchRamp
from lmjax.model.flops import count
from lmjax.scaling.ladder import size_text
from lmjax.scaling.sweep_table import DONE, Row
from lmjax.settings import SweepRun
from lmjax.tasks.resolved import resolve


@dataclass(frozen=True)
class RunSize:
    """Parameters, tokens and training FLOPs of a run, under the names that its row has."""

    parameters: int
    parameters_without_embeddings: int
    parameters_with_head: int  # without the tables, with the head
    tokens: int
    flops: float  # with attention and head: lmjax/model/flops.py
    flops_6nd: float
    flops_6nd_without_embeddings: float
    flops_spent: float  # as `flops`, of the steps that the run takes itself: a cooldown leaves out its trunk's

    def __str__(self) -> str:
        spent = "" if self.flops_spent == self.flops else f", {self.flops_spent:.2e} of them its own"
        return f"N {size_text(self.parameters)}, D {size_text(self.tokens)}, {self.flops:.2e} FLOPs{spent}"


@functools.cache
def size_of(one: SweepRun) -> RunSize:
    """Raises UserError where the recipe does not tell how large the vocabulary is."""
    stage, ramp = one.stage, BatchRamp(one.stage.data)
    counted = count(resolve(stage).model, stage.data.sequence_length)
    tokens = ramp.tokens_at(stage.train.steps)
    before = ramp.tokens_at(one.cooldown_step) if one.trunk else 0
    return RunSize(
        parameters=counted.parameters,
        parameters_without_embeddings=counted.non_embedding_parameters,
        parameters_with_head=counted.parameters_with_head,
        tokens=tokens,
        flops=float(counted.flops_per_token * tokens),
        flops_6nd=float(counted.flops_per_token_6n * tokens),
        flops_6nd_without_embeddings=6.0 * counted.non_embedding_parameters * tokens,
        flops_spent=float(counted.flops_per_token * (tokens - before)),
    )


def seconds_of(size: RunSize, rows: Mapping[str, Row]) -> float | None:
    """How long a run's steps take at the speed of the table's finished runs, by parameters; None without any."""
    done = [row for row in rows.values() if row.get("status") == DONE and row.get("tokens_per_second")]
    if not done:
        return None
    sizes = np.log([row["parameters"] for row in done])
    speeds = np.log([row["tokens_per_second"] * row["flops"] / row["tokens"] for row in done])
    known, place = np.unique(sizes, return_inverse=True)
    means = np.bincount(place, speeds) / np.bincount(place)
    return size.flops_spent / float(np.exp(np.interp(np.log(size.parameters), known, means)))
