"""`lmjax plan`: what a recipe would take of a slice, and where it does not fit, what would."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh

from lmjax.errors import UserError, clear_disk_errors, nearest, require
from lmjax.fields import placed, require_local
from lmjax.model.remat import OFFLOADED_POLICIES, REMAT_POLICIES
from lmjax.parallel.chips import GIB
from lmjax.parallel.executable import save_executable
from lmjax.parallel.mesh import AXES, mesh_shape, mesh_text
from lmjax.plan.compile import Compiled, OutOfMemory, compile_step, keep_to_cpu, slice_mesh
from lmjax.plan.estimate import Estimate, estimate
from lmjax.plan.layout import laid_out
from lmjax.plan.slices import find_slice
from lmjax.plan.target import StepKind, Target, target_of
from lmjax.settings import MeshSettings, Pipeline, Stage, TrainingStage
from lmjax.stages.registry import kind_of
from lmjax.stages.train_stage import about_step

Say = Callable[[str], None]
Planned = TypeVar("Planned", bound=TrainingStage)


@dataclass(frozen=True)
class Alternative:
    """A change to a recipe that was compiled because the recipe as it stands does not fit."""

    remat: str
    mesh: dict[str, int]
    fits: bool
    peak_hbm_gib: float


@dataclass(frozen=True)
class Plan:
    """The estimate of a recipe on a slice and, where it does not fit, what was tried instead, the last of which may."""

    estimate: Estimate
    tried: tuple[Alternative, ...] = ()

    def to_json(self) -> str:
        tried = [dataclasses.asdict(each) for each in self.tried]
        return json.dumps(self.estimate.to_dict() | {"tried": tried})


def chosen(recipe: Stage | Pipeline, stage: str | None = None) -> tuple[TrainingStage, tuple[Stage, ...]]:
    """The stage to plan, and the stages of its pipeline before it.

    Of a pipeline it is the one named `stage`, or else the first that says for which slice, or else the first. Raises
    UserError where there is no such stage, or nothing in it to compile.
    """
    names = [each.name for each in recipe.stages]
    if stage is not None and stage not in names:
        raise UserError(f"--stage {stage}: no such stage in {recipe.name!r}; {nearest(stage, names)}")
    placed = [each.name for each in _planned(recipe.stages) if each.plan.topology]
    place = names.index(stage or (placed or names)[0])
    found = recipe.stages[place]
    if not isinstance(found, TrainingStage):
        others = ", ".join(each.name for each in _planned(recipe.stages))
        raise UserError(f"--stage {found.name}: it trains nothing; plan one of {others}")
    return found, recipe.stages[:place]


def _planned(stages: Sequence[Stage]) -> list[TrainingStage]:
    return [each for each in stages if isinstance(each, TrainingStage)]


def plan(
    recipe: TrainingStage,
    topology: str | None = None,
    mesh: str | None = None,
    *,
    hlo: Path | None = None,
    save: Path | None = None,
    step: StepKind = "train",
    before: Sequence[Stage] = (),
    say: Say = lambda line: None,
) -> Plan:
    """Compiles a stage's step for a slice and estimates it; topology and mesh default to the recipe's own.

    `mesh` is written as in "fsdp=64,tensor=8". A model that the recipe does not tell is that of the stage or checkpoint
    that it is initialised from; `before` are the stages of its pipeline before it. `hlo` and `save` are files for the
    optimized text and the serialized executable. A step that does not fit is an answer: the next remat policies and
    meshes are compiled until one fits, and no file is written. Raises UserError for an unknown topology, a mesh that
    does not fit it, a file that cannot be written, or a missing libtpu.
    """
    recipe = planned_recipe(recipe, topology, mesh)
    runs = kind_of(recipe).loads_executable and step == "train"
    require(save is None or runs, "--save", str(save), "the training step of a pretraining", "lmjax run loads no other")
    files = {option: path for option, path in (("--hlo", hlo), ("--save", save)) if path is not None}
    for option, path in files.items():
        require_local(option, path)
        _check_file(option, path)
    where = find_slice(recipe.plan.topology)
    target = target_of(recipe, step, before)
    devices = slice_mesh(target, where)
    say(f"compiling {recipe.name} for {where.chips} chips, {where.name}")
    outcome = compile_step(target, where)
    result = estimate(target, where, devices, outcome)
    if isinstance(outcome, Compiled):
        if hlo is not None:
            with clear_disk_errors(hlo.parent):
                hlo.write_text(outcome.text, encoding="utf-8")
        if save is not None:
            _save(save, target, outcome, devices)
        return Plan(result)
    tried = tuple(_until_one_fits(target, say))
    for option, path in files.items():
        say(f"{path} was not written: the step does not fit; plan one that does with {option} {path}")
    return Plan(result, tried)


def _save(path: Path, target: Target, program: Compiled, mesh: Mesh) -> None:
    about, compute = about_step(target.resolved), target.recipe.compute
    with clear_disk_errors(path.parent):
        save_executable(path, program.lowered, program.executable, mesh, about, compute)


def _check_file(option: str, path: Path) -> None:
    """Raises UserError where a file cannot be written: asked before the minutes that compiling takes."""
    try:
        require(not path.is_dir(), option, str(path), "a file", "name one in that folder")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        expected = f"a file that can be written, but {error.strerror}: {str(path.parent)!r}"
        raise UserError(f"{option} = {str(path)!r}: expected {expected}; make that folder or name another") from error


def planned_recipe(recipe: Planned, topology: str | None = None, mesh: str | None = None) -> Planned:
    """The recipe with the topology and mesh that it is planned for, laid out as a run there would be.

    Raises UserError where no topology is known.
    """
    named = topology or recipe.plan.topology
    require(bool(named), "plan.topology", named, "a slice", "give --topology, such as --topology v5e-256")
    settings = recipe.mesh if mesh is None else parse_mesh(mesh)
    recipe = dataclasses.replace(recipe, mesh=settings, plan=dataclasses.replace(recipe.plan, topology=named))
    where = find_slice(named)
    keep_to_cpu()
    return laid_out(recipe, where)


def parse_mesh(text: str) -> MeshSettings:
    """Mesh sizes from "fsdp=64,tensor=8"; `data` takes what is left unless it is given. Raises UserError."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES:
            raise UserError(f"--mesh {text}: no mesh axis {name!r}; {nearest(name, AXES)}")
        if name in sizes:
            raise UserError(f"--mesh {text}: {name} has two sizes; expected each axis once, as in {name}={sizes[name]}")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"--mesh {text}: {part!r}: expected a whole number, as in fsdp=64") from None
    with placed("mesh"):
        return MeshSettings(**sizes)


def _until_one_fits(target: Target, say: Say) -> Iterator[Alternative]:
    """Compiles the next remat policies and meshes, each needing less memory, up to the first that fits."""
    where = find_slice(target.recipe.plan.topology)
    for each in alternatives(target.recipe, where.devices):
        shape = mesh_shape(each.mesh, where.devices)
        say(f"does not fit; trying remat {each.compute.remat!r} on {mesh_text(shape)}")
        try:
            outcome = compile_step(target.with_fields(mesh=each.mesh, compute=each.compute), where)
        except UserError as error:  # a mesh that does not divide the batch or the model
            say(f"  not possible: {error}")
            continue
        fits = isinstance(outcome, Compiled)
        peak = outcome.needed if isinstance(outcome, OutOfMemory) else outcome.peak
        yield Alternative(each.compute.remat, shape, fits, peak / GIB)
        if fits:
            return


def alternatives(recipe: Planned, devices: int) -> list[Planned]:
    """The recipe with ever less memory: every further remat policy, then parameters cut further, with full remat."""
    policies = ["none", *REMAT_POLICIES]
    offloaded = recipe.compute.remat in OFFLOADED_POLICIES  # which leaves the device little more than "full" does
    later = ["full"] if offloaded else policies[policies.index(recipe.compute.remat_policy) + 1 :]
    found = [_changed(recipe, policy, recipe.mesh) for policy in later]
    shape = mesh_shape(recipe.mesh, devices)
    while shape["data"] % 2 == 0:
        shape = shape | {"data": shape["data"] // 2, "fsdp": shape["fsdp"] * 2}
        found.append(_changed(recipe, "full", MeshSettings(**shape)))
    while shape["fsdp"] % 2 == 0 and shape["tensor"] < 8:
        shape = shape | {"fsdp": shape["fsdp"] // 2, "tensor": shape["tensor"] * 2}
        found.append(_changed(recipe, "full", MeshSettings(**shape)))
    return found


def _changed(recipe: Planned, remat: Any, mesh: MeshSettings) -> Planned:
    return dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, remat=remat), mesh=mesh)
