"""Chooses for a slice what a pretraining recipe leaves open of its mesh and of how it is computed.

In: a recipe and a slice. Out: the recipe with the mesh, the microbatches, the remat policy, the attention kernel's
block, the loss's chunks and whether layers are unrolled, as the arithmetic of `lmjax.plan.predict` finds quickest among
what fits. It takes a second; `lmjax plan --auto` compiles the best few instead. None of it changes what is trained
beyond rounding.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar, cast

from lmjax.errors import UserError
from lmjax.model.remat import OFFLOADED_POLICIES
from lmjax.plan.candidates import Candidate, candidates, own_candidate
from lmjax.plan.predict import Analyst
from lmjax.plan.slices import Slice
from lmjax.settings import Pretrain, TrainingStage
from lmjax.stages.registry import kind_of

Trained = TypeVar("Trained", bound=TrainingStage)

FILLED = 0.87  # of the HBM that a step may be predicted to need: compiled ones needed up to 1 / 0.87 of it
WORTH_UNROLLING = 0.02  # of a step that unrolled layers must save, for they take many times as long to compile


def laid_out(stage: Trained, where: Slice) -> Trained:
    """The stage with what it leaves open chosen for a slice; itself where it leaves nothing open, or is no pretraining.

    Nothing is chosen for a policy that offloads, which is not predicted, nor beside a mesh that does not divide the
    batch and the model: whoever builds the step says so. Raises UserError where no mesh does.
    """
    if not kind_of(stage).chooses_layout or stage.compute.remat in OFFLOADED_POLICIES:
        return stage
    recipe, compute = cast(Pretrain, stage), stage.compute
    if not recipe.mesh.is_open:
        given = compute.remat != "auto" and None not in (compute.unroll_layers, recipe.train.microbatches)
        if given or own_candidate(recipe, where) is None:
            return stage
    return cast(Trained, best(recipe, where).applied(recipe))


def best(recipe: Pretrain, where: Slice) -> Candidate:
    """The candidate that agrees with what the recipe gives, is predicted to fit and to be quickest.

    Where none fits, the one that needs the least memory: the compiler will say what is missing. Raises UserError where
    no mesh divides the batch in the microbatches that the recipe gives, and the model.
    """
    mesh = None if recipe.mesh.is_open else recipe.mesh
    found = [agreed for each in candidates(recipe, where, mesh) if (agreed := _agreed(each, recipe))]
    if not found:
        parts, rows = recipe.train.microbatches, recipe.data.batch_size
        raise UserError(
            f"train.microbatches = {parts}: expected a number that leaves the {where.devices} devices of {where.name} "
            f"rows to share, of data.batch_size = {rows}; use fewer, or leave it out"
        )
    analyst = Analyst(recipe, where)
    predicted = {each: analyst.predict(each) for each in found}
    fitting = [each for each in found if predicted[each].memory <= FILLED * where.device_hbm]

    def cost(each: Candidate) -> tuple[float, float]:
        seconds = predicted[each].step_seconds
        return seconds * (1 + WORTH_UNROLLING if each.unrolled else 1), predicted[each].memory

    return min(fitting, key=cost) if fitting else min(found, key=lambda each: predicted[each].memory)


def _agreed(each: Candidate, recipe: Pretrain) -> Candidate | None:
    """The candidate with the recipe's own attention block; None where something else differs from what it gives."""
    compute = recipe.compute
    given = (
        (None if compute.remat == "auto" else compute.remat, each.remat),
        (compute.unroll_layers, each.unrolled),
        (recipe.train.microbatches, each.microbatches),
    )
    if any(wanted not in (None, has) for wanted, has in given):
        return None
    return dataclasses.replace(each, block=compute.attention_block or each.block)
