"""`lmjax plan`: what a recipe would take of a slice, and where it does not fit, what would."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, nearest, require
from lmjax.model.remat import REMAT_POLICIES
from lmjax.parallel.executable import save_executable
from lmjax.parallel.mesh import AXES, mesh_shape
from lmjax.plan.compile import OutOfMemory, Program, compile_step, slice_mesh
from lmjax.plan.estimate import Estimate, estimate
from lmjax.plan.topology import GIB, find_slice
from lmjax.recipe import Recipe
from lmjax.settings import MeshSettings
from lmjax.stages.pretrain import about_step, planned_entries

Say = Callable[[str], None]


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


def plan(
    recipe: Recipe,
    topology: str | None = None,
    mesh: str | None = None,
    *,
    hlo: Path | None = None,
    save: Path | None = None,
    say: Say = lambda line: None,
) -> Plan:
    """Compiles a recipe's step for a slice and estimates it; topology and mesh default to the recipe's own.

    `mesh` is written as in "fsdp=64,tensor=8". `hlo` and `save` are files for the optimized text and the serialized
    executable. A step that does not fit is an answer: the next remat policies and meshes are compiled until one fits.
    Raises UserError for an unknown topology, a mesh that does not fit it, or a missing libtpu.
    """
    recipe = planned_recipe(recipe, topology, mesh)
    where = find_slice(recipe.plan.topology)
    devices = slice_mesh(recipe, where)
    say(f"compiling {recipe.name} for {where.chips} chips, {where.name}")
    outcome = compile_step(recipe, where)
    result = estimate(recipe, where, devices, outcome)
    if isinstance(outcome, Program):
        if hlo is not None:
            hlo.write_text(outcome.text, encoding="utf-8")
        if save is not None:
            about = about_step(recipe, planned_entries(recipe))
            save_executable(save, outcome.lowered, outcome.executable, devices, about)
        return Plan(result)
    return Plan(result, tuple(_until_one_fits(recipe, say)))


def planned_recipe(recipe: Recipe, topology: str | None = None, mesh: str | None = None) -> Recipe:
    """The recipe with the topology and mesh that it is planned for. Raises UserError where no topology is known."""
    named = topology or recipe.plan.topology
    require(bool(named), "plan.topology", named, "a slice", "give --topology, such as --topology v5e-256")
    settings = recipe.mesh if mesh is None else parse_mesh(mesh)
    return dataclasses.replace(recipe, mesh=settings, plan=dataclasses.replace(recipe.plan, topology=named))


def parse_mesh(text: str) -> MeshSettings:
    """Mesh sizes from "fsdp=64,tensor=8"; `data` takes what is left unless it is given. Raises UserError."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES:
            raise UserError(f"--mesh {text}: no mesh axis {name!r}; {nearest(name, AXES)}")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"--mesh {text}: {part!r}: expected a whole number, as in fsdp=64") from None
    return MeshSettings(**sizes)


def _until_one_fits(recipe: Recipe, say: Say) -> Iterator[Alternative]:
    """Compiles the next remat policies and meshes, each needing less memory, up to the first that fits."""
    where = find_slice(recipe.plan.topology)
    for each in alternatives(recipe, where.devices):
        shape = mesh_shape(each.mesh, where.devices)
        say(f"does not fit; trying remat {each.compute.remat!r} on {mesh_text(shape)}")
        try:
            outcome = compile_step(each, where)
        except UserError as error:  # a mesh that does not divide the batch or the model
            say(f"  not possible: {error}")
            continue
        fits = isinstance(outcome, Program)
        peak = outcome.needed if isinstance(outcome, OutOfMemory) else outcome.peak
        yield Alternative(each.compute.remat, shape, fits, peak / GIB)
        if fits:
            return


def alternatives(recipe: Recipe, devices: int) -> list[Recipe]:
    """The recipe with ever less memory: every further remat policy, then parameters cut further, with full remat."""
    policies = ["none", *REMAT_POLICIES]
    later = policies[policies.index(recipe.compute.remat) + 1 :]
    found = [_changed(recipe, policy, recipe.mesh) for policy in later]
    shape = mesh_shape(recipe.mesh, devices)
    while shape["data"] % 2 == 0:
        shape = shape | {"data": shape["data"] // 2, "fsdp": shape["fsdp"] * 2}
        found.append(_changed(recipe, "full", MeshSettings(**shape)))
    while shape["fsdp"] % 2 == 0 and shape["tensor"] < 8:
        shape = shape | {"fsdp": shape["fsdp"] // 2, "tensor": shape["tensor"] * 2}
        found.append(_changed(recipe, "full", MeshSettings(**shape)))
    return found


def _changed(recipe: Recipe, remat: Any, mesh: MeshSettings) -> Recipe:
    return dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, remat=remat), mesh=mesh)


def mesh_text(shape: dict[str, int]) -> str:
    """The axes that are cut, as in "fsdp=64,tensor=4"."""
    return ",".join(f"{name}={size}" for name, size in shape.items() if size > 1) or "data=1"
