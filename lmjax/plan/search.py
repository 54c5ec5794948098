"""`lmjax plan --auto`: the mesh, microbatches, remat policy and kernel block with which a recipe's step is quickest.

In: a recipe and a slice. Every candidate is first judged by arithmetic (`lmjax.plan.predict`); the most promising are
compiled, one after the other, by the TPU's own compiler, until there are enough or the time is over, and what it said
is kept on disk. Out: a `Search`, the ranking of those that fit by the compiler's figures. The global batch and
everything else that training depends on stay as they are in the recipe.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from lmjax.errors import UserError, require
from lmjax.model.flops import count
from lmjax.plan.cache import Cache, Result
from lmjax.plan.candidates import Candidate, candidates, own_candidate
from lmjax.plan.compile import compile_step, slice_devices, slice_mesh
from lmjax.plan.estimate import Estimate, estimate
from lmjax.plan.predict import Analyst, Prediction
from lmjax.plan.slices import Slice, find_slice
from lmjax.plan.target import target_of
from lmjax.settings import MeshSettings, Pretrain
from lmjax.tasks.resolved import known_model

DEFAULT_LIMIT = 8  # candidates that are compiled
LARGE = 10**9  # parameters: the compiler takes several minutes for a step
MINUTES, MINUTES_LARGE = 9.0, 25.0  # after which none is begun
# Of the best candidate, at the end: what arithmetic says nothing of. Each is kept where it is quicker.
REFINED: tuple[dict[str, Any], ...] = ({"vector_memory": 48}, {"vector_memory": 64}, {"vector_memory": 16})
REFINEMENTS = 4  # of so many compilations one is a refinement
HEADROOM = 1.15  # a candidate that is predicted to need more than this times the HBM is not compiled

Show = Callable[[int, Candidate, bool], None]  # how many are done, the one that begins, and whether it is in the cache
Watch = Callable[[int, float], AbstractContextManager[Show]]  # given how many will be compiled, and seconds, at most


@dataclass(frozen=True)
class Tried:
    """A candidate that was compiled, now or in an earlier search."""

    candidate: Candidate
    prediction: Prediction
    result: Result
    cached: bool

    @property
    def estimate(self) -> Estimate | None:
        """What the compiler says of a step that fits; None of one that does not."""
        found = self.result.estimate
        return found if found is not None and found.fits else None

    @property
    def seconds(self) -> float:
        """Of a step, as estimated; infinite for one that does not fit."""
        found = self.estimate
        return math.inf if found is None or found.step_seconds is None else found.step_seconds


@dataclass(frozen=True)
class Search:
    """The ranking, quickest first, those that the compiler refused, and how many were never compiled."""

    recipe: Pretrain
    where: Slice
    ranked: tuple[Tried, ...]
    refused: tuple[Tried, ...]
    considered: int
    too_large: int  # predicted not to fit
    slower: int  # predicted to fit, but to be slower than those that were compiled
    postponed: int = 0  # promising, but the time was over
    own: Candidate | None = None  # the recipe's own choices


def search(
    recipe: Pretrain,
    mesh: MeshSettings | None = None,
    limit: int = DEFAULT_LIMIT,
    minutes: float | None = None,
    *,
    cache: Cache | None = None,
    watch: Watch = lambda total, seconds: nullcontext(lambda done, candidate, cached: None),
) -> Search:
    """Compiles the `limit` most promising candidates of a recipe on its plan's slice, on one mesh where it is given.

    The recipe's own choices are compiled first where they are promising and no mesh is given: nothing is recommended
    that is slower. The last of `limit` are the best one with another vector memory. None is begun that would not end
    within `minutes` (None: `usual_minutes`), as long as those before it took; the same search again resumes. Where
    nothing fits, what needs the least memory is compiled too, to say what is missing. Raises UserError for an unknown
    topology, a missing libtpu, or where nothing divides the batch and the model.
    """
    minutes = usual_minutes(recipe) if minutes is None else minutes
    require(limit > 0, "--limit", limit, "how many candidates to compile, 1 or more", "leave it out")
    require(minutes > 0, "--minutes", minutes, "after how many minutes none is begun, more than 0", "leave it out")
    where = find_slice(recipe.plan.topology)
    slice_devices(where)  # says what is missing before anything is worked out, and keeps JAX on the CPU
    found = candidates(recipe, where, mesh)
    analyst = Analyst(recipe, where)
    own = own_candidate(recipe, where) if mesh is None else None
    found += [own] if own is not None and own not in found else []
    predicted = {each: analyst.predict(each) for each in found}
    promising = [each for each in found if predicted[each].memory <= HEADROOM * where.device_hbm]
    promising.sort(key=lambda each: (predicted[each].step_seconds, predicted[each].memory))
    compiler = _Compiler(recipe, where, cache or Cache(), predicted, 60 * minutes)
    with watch(min(limit, max(len(promising), 1)), 60 * minutes) as show:
        if own is not None and own in promising:
            compiler.compile(own, show)
        others = [each for each in promising if each != own]
        refinements = REFINED[: limit // REFINEMENTS]
        for each in _choose(others, limit - len(refinements) - len(compiler.tried), compiler):
            if compiler.has_time_for(each, len(refinements)):
                compiler.compile(each, show)
        for change in refinements:
            best = min(compiler.tried, key=lambda each: each.seconds, default=None)
            if best is not None and best.estimate is not None:
                compiler.refine(dataclasses.replace(best.candidate, **change), analyst, show)
        if not any(each.estimate for each in compiler.tried):
            tried = {each.candidate for each in compiler.tried}
            rest = (each for each in found if each not in tried)
            for least in sorted(rest, key=lambda each: predicted[each].memory)[:1]:
                compiler.compile(least, show)
    slower = len(set(promising) - {each.candidate for each in compiler.tried})
    return Search(
        recipe,
        where,
        tuple(sorted((each for each in compiler.tried if each.estimate), key=lambda each: each.seconds)),
        tuple(each for each in compiler.tried if not each.estimate),
        considered=len(predicted),
        too_large=len(predicted) - slower - len(compiler.tried),
        slower=slower,
        postponed=compiler.postponed,
        own=own,
    )


def usual_minutes(recipe: Pretrain) -> float:
    """How long a search for a recipe takes unless it is told: less for a model that is compiled sooner."""
    return MINUTES if count(known_model(recipe)).parameters < LARGE else MINUTES_LARGE


def compiled(recipe: Pretrain, where: Slice, cache: Cache) -> Result:
    """What the compiler says of a recipe's step on a slice, which is kept in the cache.

    Call `slice_devices(where)` before: what it finds missing is no refusal of the recipe.
    """
    try:
        target = target_of(recipe)
        outcome = compile_step(target, where)
        result = Result(estimate(target, where, slice_mesh(target, where), outcome))
    except (UserError, jax.errors.JaxRuntimeError) as error:  # a mesh that cannot be laid out; a kernel too large
        result = Result(refusal=str(error).splitlines()[0])
    cache.put(recipe, where.name, result)
    return result


def _choose(promising: list[Candidate], limit: int, compiler: _Compiler) -> Iterator[Candidate]:
    """The first `limit`, but at most half of them on one mesh, and none that needs more than one that did not fit."""
    on_mesh: Counter[tuple[int, ...]] = Counter()
    meshes = {each.mesh for each in promising}
    most = limit if len(meshes) == 1 else math.ceil(limit / 2)
    for each in promising:
        if sum(on_mesh.values()) == limit:
            return
        if on_mesh[each.mesh] < most and not compiler.rules_out(each):
            on_mesh[each.mesh] += 1
            yield each


class _Compiler:
    """Compiles candidates, or reads what was kept of them."""

    def __init__(
        self, recipe: Pretrain, where: Slice, cache: Cache, predicted: dict[Candidate, Prediction], seconds: float
    ) -> None:
        self.recipe, self.where, self.cache, self.predicted = recipe, where, cache, predicted
        self.tried: list[Tried] = []
        self.postponed = 0
        self.end, self.took = time.monotonic() + seconds, [0.0]

    def compile(self, candidate: Candidate, show: Show) -> None:
        """Adds what the compiler says of a candidate to `tried`."""
        recipe = candidate.applied(self.recipe)
        kept = self.cache.get(recipe, self.where.name)
        show(len(self.tried), candidate, kept is not None)
        begin = time.monotonic()
        result = kept or compiled(recipe, self.where, self.cache)
        if kept is None:
            self.took.append(time.monotonic() - begin)
        self.tried.append(Tried(candidate, self.predicted[candidate], result, kept is not None))

    def has_time_for(self, candidate: Candidate, later: int = 0) -> bool:
        """Whether it and `later` more would end in time if each took as long as the longest; else it is postponed."""
        if time.monotonic() + (1 + later) * max(self.took) < self.end:
            return True
        kept = self.cache.get(candidate.applied(self.recipe), self.where.name) is not None
        self.postponed += not kept
        return kept

    def refine(self, candidate: Candidate, analyst: Analyst, show: Show) -> None:
        """Compiles one that was not among the predicted, if there is time and it was not compiled already."""
        if candidate not in {each.candidate for each in self.tried} and self.has_time_for(candidate):
            self.predicted.setdefault(candidate, analyst.predict(candidate))
            self.compile(candidate, show)

    def rules_out(self, candidate: Candidate) -> bool:
        """Whether one on the same mesh that is predicted to need no more did not fit."""
        needs = self.predicted[candidate].memory
        short = (each for each in self.tried if each.result.estimate is not None and not each.result.estimate.fits)
        return any(each.candidate.mesh == candidate.mesh and each.prediction.memory <= needs for each in short)
