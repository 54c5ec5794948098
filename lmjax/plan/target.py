"""What a plan compiles: one program of a stage, as the stage builds it when it runs, and what it has to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import jax
from jax.sharding import Mesh

from lmjax.errors import require
from lmjax.settings import Stage, TrainingStage
from lmjax.stages.registry import kind_of
from lmjax.tasks.program import Cost, Program
from lmjax.tasks.resolved import ResolvedStage, resolve

StepKind = Literal["train", "eval", "generate"]


@dataclass(frozen=True)
class Target:
    """A program of a stage: its training step, or another one that the kind of stage has.

    No data, tokenizer or checkpoint is needed: what the stage is initialised from need not exist yet.
    """

    resolved: ResolvedStage
    step: StepKind = "train"

    @property
    def recipe(self) -> TrainingStage:
        return cast(TrainingStage, self.resolved.settings)

    @cached_property
    def cost(self) -> Cost:
        """Raises UserError where the models' shapes are not known."""
        return kind_of(self.recipe).programs[self.step].cost(self.resolved)

    def build(self, mesh: Mesh) -> Program:
        """The program for a mesh, whose devices need not be attached."""
        return kind_of(self.recipe).programs[self.step].build(self.resolved, mesh)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program as JAX lowers it for a mesh."""
        return self.build(mesh).lower()

    def check(self, mesh: dict[str, int]) -> None:
        """Raises UserError where the mesh does not divide the rows or a model."""
        assert self.cost
        microbatches = self.recipe.train.parts if self.step == "train" else 1
        self.with_fields(train=dataclasses.replace(self.recipe.train, microbatches=microbatches)).resolved.check_mesh(
            mesh
        )

    def with_fields(self, **fields: Any) -> Target:
        """The same program of the stage with other settings, such as another mesh."""
        return dataclasses.replace(self, resolved=self.resolved.with_fields(**fields))


def target_of(recipe: Stage, step: StepKind = "train", before: Sequence[Stage] = ()) -> Target:
    """A program of a stage; `before` are the stages of its pipeline before it. Raises UserError where it has none."""
    programs, what = kind_of(recipe).programs, f"'train' for {type(recipe).__name__}, whose step it is"
    require(step in programs, "--step", step, what, "leave it out")
    return Target(resolve(recipe, before), step)
