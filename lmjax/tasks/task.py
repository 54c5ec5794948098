"""What a training stage learns, as one value: its batches, rows, model, loss and evaluation.

A stage (lmjax/stages) says when a task is trained and from what; lmjax/stages/train_task.py runs any task. A task of
your own subclasses `Task` and overrides what differs: see CONTRIBUTING.md for one with a head and a loss of its own.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lmjax.checkpoints.evaluated import VALIDATION_LOSS
from lmjax.data.batch import INPUTS, TOKENS, Batch, BatchSpec
from lmjax.data.buckets import BucketLoader
from lmjax.data.loader import RowLoader, ValidationBatches
from lmjax.data.packing import Rows
from lmjax.data.token_cache import TokenCache
from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.validation import Sums, mean_of, sums_by_source, values_of
from lmjax.model.families import model_of
from lmjax.model.flops import count
from lmjax.objective.weighted import LossFunction
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.rates import layer_rates, model_rates
from lmjax.optim.schedules import Course, Schedule, course_of, schedule_of
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import (
    abstract_batch,
    abstract_params,
    abstract_state,
    abstract_whole,
    jit_eval,
    jit_step,
    placed_batch,
    shardings_of,
)
from lmjax.settings import ModelSettings, TrainingStage
from lmjax.settings.stage import TaskSettings
from lmjax.tasks.program import Cost, Program, RunNumbers, language_cost, platform_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.step import Metrics, make_eval_step, make_train_step
from lmjax.training.stop import StopRequest

Evaluate = Callable[[TrainState, int, EvaluationLines], Values]  # Interrupted where a stop is asked for


@dataclass(frozen=True)
class Session:
    """What surrounds a run: who asks it to stop, what shows it, a compiled step to load, if any, and where tokens are.

    seconds: how long the stage has run, with the earlier runs of its workdir.
    """

    stop: StopRequest
    display: ProgressDisplay
    executable: Path | None = None
    cache: TokenCache | None = None  # None: tokens are kept in the workdir
    seconds: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class TaskData:
    """The rows of a task. `shares` describes, for so many steps, how much of each source they read."""

    train: Sequence[Rows]  # of each source
    weights: Sequence[float | None]  # of each source in the mixture; None counts it by its rows
    validation: Sequence[Rows] = ()
    names: Sequence[str] = ()  # of the validation sources
    epoch_rows: int = 0  # training rows that an epoch counts
    mixed: float = 0.0  # the share of rows beside them that it does not count
    shares: Callable[[Any, int], list[str]] = lambda loader, steps: []
    more: dict[str, Sequence[Rows]] = field(default_factory=dict)  # other rows, by what they are for
    examples: Sequence[Sequence[Any]] = ()  # of each validation source, where the rows are made of examples


@dataclass(frozen=True)
class TaskRun:
    """A task in training: what its evaluation reads."""

    resolved: ResolvedStage
    mesh: Mesh
    program: Program
    frozen: tuple[Any, ...]
    data: TaskData
    loader: RowLoader | BucketLoader
    session: Session

    @property
    def stage(self) -> TrainingStage:
        return self.resolved.of(TrainingStage)

    def batches(self, rows: Sequence[Rows]) -> ValidationBatches:
        """The rows of a validation set in batches."""
        return ValidationBatches(rows, self.stage.loading.sequence_length, self.stage.loading.batch_size)

    def sums_over(
        self,
        reading: Callable[..., Sums],
        params: Any,
        rows: Sequence[Rows],
        most: int | None,
        counted: Callable[[int], Sums] = lambda number: {},
    ) -> list[Sums]:
        """What `reading`, of (params, *frozen, batch), gives of each source's rows, added up.

        `counted` gives further sums of the batch with a number, worked out on the host.
        """
        batches, axes = self.batches(rows), self.program.axes

        def read(number: int) -> Sums:
            batch = placed_batch(batches, number, self.mesh, axes)
            return reading(params, *self.frozen, batch) | counted(number)

        return sums_by_source(read, batches, most, self.session.stop)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """(params, *frozen, batch) -> sums, compiled for the mesh."""
        sharding = shardings_of(self.program.batch)
        return jit_eval(function, self.mesh, self.program.abstract.params, *self.frozen, batch=sharding)


class Task(TaskSettings, ABC):
    """What a training stage learns: a frozen dataclass of settings, without arrays.

    `trunk` says where in the parameters those of the language model are; () where they are all of them.
    """

    @abstractmethod
    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        """The fields of a batch: shapes, dtypes and the axes that a mesh cuts."""

    @abstractmethod
    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        """The rows. Raises UserError for bad input."""

    @abstractmethod
    def loss(self, model: Any, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        """The loss of a model, a function (params, batch, rng); `frozen` are the parameters of `frozen_models`."""

    def model(self, resolved: ResolvedStage, platform: str) -> Any:
        """The model: `init(rng)`, `logical_axes()`, and whatever the loss calls. By default `resolved.model`'s."""
        return model_of(resolved.model, resolved.settings.compute, platform)

    def prepared(self) -> Task:
        """The task with what its data tell of it, such as the names of classes. Raises UserError."""
        return self

    def adapted(self, model: ModelSettings, rows: int) -> ModelSettings:
        """The settings of the model that is trained, from those of the initial checkpoint's, for so long rows.

        Tables may get rows: theirs are kept, and the others are fresh.
        """
        return model

    def added_rows(self, model: ModelSettings) -> int:
        """How many rows of the table of such a model are the task's own, behind those of the tokenizer."""
        return 0

    def weigh(self, batch: Batch) -> Batch:
        """The whole batch with weights that make the loss one sum divided by one weight; called before microbatches."""
        return batch

    def language_model(self, params: Any) -> Any:
        """The language model's part of the parameters."""
        for key in self.trunk:
            params = params[key]
        return params

    def initial(self, model: Any, language_model: Any, rng: jax.Array) -> Any:
        """The parameters to begin with: fresh ones, but those of the language model in the initial checkpoint."""
        return _with_trunk(model.init(rng), self.trunk, language_model) if self.trunk else language_model

    def frozen_models(self, model: Any) -> tuple[Any, ...]:
        """Models that the loss reads and that are not trained; their parameters are the initial checkpoint's."""
        return ()

    def numbers(self, resolved: ResolvedStage, steps: int) -> RunNumbers:
        """What a run of so many updates does not share with others of its shape."""
        stage = resolved.of(TrainingStage)
        course = course_of(stage.optimizer.schedule, stage.optimizer.learning_rate, steps, self.clock(resolved))
        return RunNumbers(stage.train.seed, course)

    def optimizer(
        self, resolved: ResolvedStage, axes: Any, course: Course
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """The optimizer of parameters with these axes, and its learning rate. The course may be traced."""
        settings = resolved.of(TrainingStage).optimizer
        schedule = schedule_of(settings.schedule, course, self.clock(resolved))
        decay, frozen = resolved.of(TrainingStage).rates_by_layer
        whole = layer_rates(axes, resolved.model, self.trunk, decay, frozen)
        rates = model_rates(axes, resolved.model)._replace(whole=whole)
        return make_optimizer(settings, schedule, axes, rates), schedule

    def clock(self, resolved: ResolvedStage) -> Schedule | None:
        """The tokens that are read before a step, where the task counts them."""
        return None

    def build(self, resolved: ResolvedStage, mesh: Mesh, steps: int) -> Program:
        """The training step on a mesh, whose devices need not be attached, for so many steps in all."""
        model, numbers = self.model(resolved, platform_of(mesh)), self.numbers(resolved, steps)
        optimizer, schedule = self.optimizer(resolved, model.logical_axes(), numbers.course)
        abstract = abstract_state(model, optimizer, mesh)
        frozen = tuple(abstract_params(each, mesh) for each in self.frozen_models(model))
        spec, compute = self.spec(resolved), resolved.of(TrainingStage).compute
        batch, taken = abstract_batch(spec, mesh), (numbers.arrays(),)
        others = (*frozen, *abstract_whole(taken, mesh))
        jitted = jit_step(self.step(model, resolved), abstract, mesh, compute, frozen=others, batch=shardings_of(batch))
        return Program(model, optimizer, abstract, frozen, spec, batch, jitted, taken, schedule)

    def step(self, model: Any, resolved: ResolvedStage) -> Callable[..., tuple[TrainState, Metrics]]:
        """(state, *frozen, numbers, batch) -> (state, metrics), a pure function; `numbers` are a `RunNumbers`."""
        axes, parts = model.logical_axes(), resolved.of(TrainingStage).train.parts

        def step(state: TrainState, *rest: Any) -> tuple[TrainState, Metrics]:
            *frozen, numbers, batch = rest
            optimizer, schedule = self.optimizer(resolved, axes, numbers.course)
            loss_fn = self.loss(model, resolved, *frozen)
            made = make_train_step(loss_fn, optimizer, microbatches=parts, seed=numbers.seed, schedule=schedule)
            return made(state, self.weigh(batch))

        return step

    @property
    def copies(self) -> int:
        """How many models read each batch."""
        return 1

    def summary(self, sums: Sums) -> Values:
        """The numbers of an evaluation, from the sums over a validation set: means of the loss and of every metric."""
        others = {f"validation_{name}": mean_of(pair) for name, pair in sums.items() if name != "loss"}
        return {VALIDATION_LOSS: mean_of(sums["loss"])} | others

    def evaluation(self, run: TaskRun) -> Evaluate:
        """A function of the state that evaluates it: by default, `summary` of the loss over the validation rows."""
        reading = run.compiled(self.read(run.program.model, run.resolved))

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            if not run.data.validation:
                return {}
            most = run.stage.evaluation.batches
            return values_of(
                run.data.names, run.sums_over(reading, state.params, run.data.validation, most), self.summary
            )

        return evaluate

    def read(self, model: Any, resolved: ResolvedStage) -> Callable[..., Sums]:
        """(params, *frozen, batch) -> the loss and its metrics, without dropout."""

        def read(params: Any, *rest: Any) -> Sums:
            *frozen, batch = rest
            return make_eval_step(self.loss(model, resolved, *frozen))(params, batch)

        return read

    def finish(self, run: TaskRun) -> Callable[[TrainState], TrainState] | None:
        """A function of the state that the last step saves, or None. Done twice, it changes nothing more."""
        return None

    def cost(self, resolved: ResolvedStage) -> Cost:
        """The FLOPs of a step: by default, those of the language model on rows of tokens, and of inputs."""
        spec = self.spec(resolved)
        tokens, inputs = spec[TOKENS].shape, spec[INPUTS].shape[-1] if INPUTS in spec else None
        return language_cost(resolved.model, math.prod(tokens[:-1]), tokens[-1], inputs=inputs)

    def flops_per_token(self, resolved: ResolvedStage) -> float:
        """Of a step, as its throughput counts them: padding, and inputs of an encoder, are tokens too."""
        spec = self.spec(resolved)
        inputs = spec[INPUTS].shape[-1] if INPUTS in spec else None
        return count(resolved.model, spec[TOKENS].shape[-1], inputs).flops_per_token

    def progress(self, loader: Any, done: int) -> Values:
        """What is recorded beside the metrics of a step."""
        return {}


def _with_trunk(params: Any, keys: Sequence[str], trunk: Any) -> Any:
    first, *rest = keys
    return params | {first: _with_trunk(params[first], rest, trunk) if rest else trunk}
