"""The program of a training stage: its step on a mesh, from shapes alone. A run runs it, a plan compiles it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lmjax.data.batch import BatchSpec
from lmjax.model.flops import TRAIN, count, forward_flops
from lmjax.optim.schedules import Course, Schedule
from lmjax.parallel.placement import abstract_whole
from lmjax.settings import ModelSettings


class RunNumbers(NamedTuple):
    """What runs of one shape do not share. They are arguments of the step, so that all of them compile it once."""

    seed: int | np.integer | jax.Array  # of dropout; int32
    course: Course  # of the learning rate; float32

    def arrays(self) -> RunNumbers:
        """The same as scalars of NumPy."""
        return RunNumbers(np.int32(self.seed), Course(*map(np.float32, self.course)))


@dataclass(frozen=True)
class Program:
    """(state, *frozen, batch) -> (state, metrics), and the shapes and shardings of what it takes.

    Nothing is allocated, and nothing is compiled before `step` is called or lowered.
    """

    model: Any
    optimizer: optax.GradientTransformation | None
    abstract: Any  # the state; of a program that does not train, parameters
    frozen: tuple[Any, ...]
    spec: BatchSpec
    batch: dict[str, jax.ShapeDtypeStruct]  # `spec` on the mesh
    jitted: Any  # (state, *frozen, *numbers, batch) -> (state, metrics), by jax.jit
    numbers: tuple[RunNumbers, ...] = ()  # of a program that takes them; scalars of NumPy
    schedule: Schedule | None = None

    @property
    def step(self) -> Callable[..., Any]:
        """(state, *frozen, batch) -> (state, metrics), with the numbers of this run."""
        return self.with_numbers(self.jitted, self.numbers)

    @staticmethod
    def with_numbers(jitted: Callable[..., Any], numbers: Sequence[RunNumbers]) -> Callable[..., Any]:
        """A step such as `jitted`, without the argument of these numbers."""
        return lambda state, *rest: jitted(state, *rest[:-1], *numbers, rest[-1])

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The logical axes along which each field of a batch is cut."""
        return {name: field.axes for name, field in self.spec.items()}

    def lower(self) -> jax.stages.Lowered:
        """The program as JAX lowers it for its mesh, where a run puts its numbers, too."""
        mesh = next(iter(self.batch.values())).sharding.mesh
        numbers = abstract_whole(self.numbers, mesh)
        lowered: jax.stages.Lowered = self.jitted.lower(self.abstract, *self.frozen, *numbers, self.batch)
        return lowered


def platform_of(mesh: Mesh) -> str:
    """Of the devices, attached or not."""
    platform: str = mesh.devices.flat[0].platform
    return platform


@dataclass(frozen=True)
class Cost:
    """What a program has to do, over all devices."""

    models: tuple[ModelSettings, ...]  # on the mesh; the first is the one that `parameters` counts
    rows: int
    length: int  # tokens of a row
    tokens: float  # that it reads; of sampling, that it makes
    products: float  # FLOPs of the models' matrices
    scores: float  # FLOPs of attention's scores where fused kernels make them
    cached: float = 0.0  # FLOPs of the scores of sampling, against a cache

    @property
    def flops(self) -> float:
        return self.products + self.scores + self.cached

    @property
    def parameters(self) -> int:
        return count(self.models[0]).parameters


def language_cost(
    model: ModelSettings, rows: int, length: int, passes: int = TRAIN, *, head: bool = True, inputs: int | None = None
) -> Cost:
    """Of `passes` forward passes over rows, with or without the vocabulary's head; `inputs` of an encoder-decoder."""
    of, tokens = forward_flops(model, length, inputs), rows * (length + (inputs or 0))
    products = passes * tokens * (of.body + (of.head if head else 0.0))
    return Cost((model,), rows, length, tokens, products, scores=passes * tokens * of.scores)
