"""Next-token prediction of several models at once, which differ in their seed and peak rate: one program by `vmap`.

Parameters and optimizer state are stacked along a first axis of runs; step, batch and data are those of all. What is
recorded of a run ends in "/" and its name. A run whose gradient is not finite skips its step, and the others do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.validation import Sums
from lmjax.model.language_model import LanguageModel
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import abstract_batch, abstract_state, abstract_whole, jit_step, shardings_of
from lmjax.settings import Member, Pretrain
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.program import Program, RunNumbers, platform_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, TaskRun
from lmjax.training.loop import Values
from lmjax.training.step import Metrics

LONGEST_SKIP = "longest_skip"  # the most steps in a row that a run has skipped
STACKED = TrainState(None, 0, 0)  # type: ignore[arg-type]  # the axes of runs, as vmap takes them


class OptimizerStates(NamedTuple):
    """The optimizer state of each run, stacked; how many steps each has skipped in a row, and the most, int32 [R]."""

    each: Any
    skipped: jax.Array
    longest: jax.Array


@dataclass(frozen=True)
class StackedModels:
    """Fresh parameters of runs with these seeds, int32 [R], stacked: those that each would begin with alone."""

    alone: LanguageModel
    seeds: tuple[int, ...]

    def init(self, _: jax.Array) -> Any:
        seeds = jnp.asarray(self.seeds, jnp.int32)
        return jax.vmap(lambda seed: self.alone.init(jax.random.key(seed)))(seeds)

    def logical_axes(self) -> Any:
        def stacked(axes: tuple[str, ...]) -> tuple[str, ...]:
            return ("runs", *axes)

        return jax.tree.map(stacked, self.alone.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))


@dataclass(frozen=True)
class NextTokenTogether(NextToken):
    """Predicts each next token of the shards by the models of `members`."""

    members: tuple[Member, ...] = ()

    @property
    def copies(self) -> int:
        return len(self.members)

    def build(self, resolved: ResolvedStage, mesh: Mesh, steps: int) -> Program:
        compute, numbers = resolved.of(Pretrain).compute, self.numbers(resolved, steps)
        alone = self.model(resolved, platform_of(mesh))
        model = StackedModels(alone, tuple(one.seed for one in self.members))
        one = self.step(alone, resolved)

        def step(state: TrainState, numbers: RunNumbers, batch: Any) -> tuple[TrainState, Metrics]:
            runs = TrainState(state.step, state.params, state.opt_state.each)
            mapped = jax.vmap(one, in_axes=(STACKED, 0, None), out_axes=(STACKED, 0))
            new, metrics = mapped(runs, numbers, batch)
            skipped = jnp.where(metrics["skipped"] > 0, state.opt_state.skipped + 1, 0)
            states = OptimizerStates(new.opt_state, skipped, jnp.maximum(state.opt_state.longest, skipped))
            return TrainState(new.step, new.params, states), self._named(metrics)

        optimizer = self._stacked(self.optimizer(resolved, alone.logical_axes(), numbers.course)[0])
        abstract, spec = abstract_state(model, optimizer, mesh), self.spec(resolved)
        batch, taken = abstract_batch(spec, mesh), (self._each(numbers),)
        others = abstract_whole(taken, mesh)
        jitted = jit_step(step, abstract, mesh, compute, frozen=others, batch=shardings_of(batch))
        return Program(model, optimizer, abstract, (), spec, batch, jitted, taken)

    def _each(self, shared: RunNumbers) -> RunNumbers:
        """The numbers of every run, stacked."""
        own = [RunNumbers(one.seed, shared.course._replace(peak=one.learning_rate)).arrays() for one in self.members]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *own)

    def _stacked(self, alone: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer whose `init` makes the states of all runs; they are updated within vmap."""

        def init(params: Any) -> OptimizerStates:
            none = jnp.zeros(len(self.members), jnp.int32)
            return OptimizerStates(jax.vmap(alone.init)(params), none, none)

        return optax.GradientTransformation(init, alone.update)

    def _named(self, metrics: Metrics) -> Metrics:
        """Each run's metrics under its name; the means of all; `skipped` where all of them skip."""
        named: Metrics = {}
        for name, value in metrics.items():
            for number, one in enumerate(self.members):
                named[f"{name}/{one.name}"] = jax.tree.map(lambda leaf, at=number: leaf[at], value)
            mean = jnp.min if name == "skipped" else jnp.sum if isinstance(value, Weighted) else jnp.mean
            named[name] = jax.tree.map(mean, value)
        return named

    def read(self, model: Any, resolved: ResolvedStage) -> Callable[..., Sums]:
        return jax.vmap(super().read(model.alone, resolved), in_axes=(0, None))

    def summary(self, sums: Sums) -> Values:
        values: Values = {}
        for number, one in enumerate(self.members):
            own = {
                name: Weighted(pair.sum[number], pair.weight[number]) if np.ndim(pair.sum) else pair
                for name, pair in sums.items()
            }
            values |= {f"{name}/{one.name}": value for name, value in super().summary(own).items()}
        return values

    def evaluation(self, run: TaskRun) -> Evaluate:
        """The numbers of every run on the validation set, and the longest of its skips."""
        numbers = super().evaluation(run)

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            longest = jax.device_get(state.opt_state.longest).tolist()
            skips = {f"{LONGEST_SKIP}/{one.name}": float(n) for one, n in zip(self.members, longest, strict=True)}
            return numbers(state, done, lines) | skips

        return evaluate
