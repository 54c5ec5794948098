"""What a search chooses from: meshes, microbatches, remat policies and blocks of the attention kernel.

In: a recipe, a slice and, if it is given, the mesh. Out: `Candidate`s that divide the devices, the batch and the model;
each gives the recipe with its choices in place and the options of the command line that say the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmjax.errors import UserError
from lmjax.model.remat import REMAT_POLICIES
from lmjax.model.zigzag import LANES
from lmjax.parallel.mesh import AXES, mesh_shape, mesh_text
from lmjax.parallel.mesh_checks import ROW_AXES, Whole, check_whole
from lmjax.plan.attention_blocks import best_block
from lmjax.plan.slices import Slice
from lmjax.settings import MeshSettings, Pretrain, TrainSettings
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import known_model, resolve

MOST_MICROBATCHES = 64
MOST_UNROLLED = 24  # layers: each is compiled apart, which takes minutes on two cores
REMAT = ("none", *REMAT_POLICIES)  # most memory first


@dataclass(frozen=True)
class Candidate:
    """One choice. `mesh` has the sizes of `AXES`, in their order."""

    mesh: tuple[int, ...]
    microbatches: int
    remat: str
    block: int | None = None  # of the attention kernel; None is its default
    unrolled: bool = False  # layers, each of which is compiled apart
    vector_memory: int | None = None  # MiB; None is the chip's default
    loss_chunk: int | None = None  # tokens; None is by the shapes

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh's axes by name."""
        return dict(zip(AXES, self.mesh, strict=True))

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a microbatch are cut."""
        return math.prod(self.sizes[name] for name in ROW_AXES)

    @property
    def text(self) -> str:
        text = layout_text(self.sizes, self.microbatches, self.remat, self.unrolled)
        text += "" if self.loss_chunk is None else f", the loss of {self.loss_chunk:,} tokens at once"
        return text + ("" if self.vector_memory is None else f", {self.vector_memory} MiB of vector memory")

    def applied(self, recipe: Pretrain) -> Pretrain:
        """The recipe with these choices."""
        remat: Any = self.remat
        compute = dataclasses.replace(
            recipe.compute,
            remat=remat,
            attention_block=self.block,
            unroll_layers=self.unrolled,
            vector_memory=self.vector_memory,
            loss_chunk=self.loss_chunk,
        )
        return dataclasses.replace(
            recipe,
            mesh=MeshSettings(**self.sizes),
            compute=compute,
            train=dataclasses.replace(recipe.train, microbatches=self.microbatches),
        )

    def options(self, recipe: Pretrain) -> list[str]:
        """What `lmjax run` must be told beside the recipe, as in ["--mesh.data", "1", ...]: only what differs.

        What the recipe leaves to be chosen is told, too.
        """
        before, after = (
            {"mesh": each.mesh.sizes} | {part: dataclasses.asdict(getattr(each, part)) for part in ("compute", "train")}
            for each in (recipe, self.applied(recipe))
        )
        changed = [
            (f"--{part}.{name}", str(value))
            for part, values in after.items()
            for name, value in values.items()
            if value != before[part][name]
        ]
        return [*itertools.chain.from_iterable(changed)]


def layout_text(mesh: dict[str, int], microbatches: int, remat: str, unrolled: bool) -> str:
    """In words: "fsdp=16, 2 microbatches, remat 'minimal'"."""
    parts = f"{microbatches} microbatch{'es' if microbatches > 1 else ''}"
    return f"{mesh_text(mesh)}, {parts}, remat {remat!r}" + ", unrolled layers" * unrolled


def candidates(recipe: Pretrain, where: Slice, mesh: MeshSettings | None = None) -> list[Candidate]:
    """All candidates of a recipe on a slice; of the one mesh where it is given. What the recipe gives is among them.

    The kernel's block is the one that a model of it finds quickest (`lmjax.plan.attention_blocks`), because the
    compiler says nothing of it. Policies that offload to the host are left out: nor does it say what that takes.
    Raises UserError where no mesh of the slice's devices divides the batch and the model.
    """
    meshes = [mesh_shape(mesh, where.devices)] if mesh is not None else list(_meshes(where))
    found: list[Candidate] = []
    splash = _uses_splash(recipe)
    # "dots" is the same program as "minimal" then
    policies = [name for name in REMAT if not (splash and name == "dots") or name == recipe.compute.remat]
    model, length = known_model(recipe), recipe.data.sequence_length
    few = recipe.compute.scan_layers and model.layers <= MOST_UNROLLED
    unrolled = (False, True) if few or recipe.compute.unroll_layers else (False,)
    wholes = [Whole(model, recipe.data, TrainSettings(microbatches=parts)) for parts in _microbatches(recipe)]
    for sizes, whole in itertools.product(meshes, wholes):
        if whole.uneven(sizes) is not None or not _whole_registers(recipe, sizes):
            continue
        block = best_block(model, length, sizes["sequence"], where) if splash else recipe.compute.attention_block
        at_once, parts = _logits_at_once(recipe, sizes, whole.train.parts), whole.train.parts
        found += [
            Candidate(tuple(sizes.values()), parts, remat, block, apart, recipe.compute.vector_memory, chunk)
            for remat, apart, chunk in itertools.product(policies, unrolled, at_once)
        ]
    if not found:
        which = "the mesh" if mesh is not None else f"any mesh of {where.devices} devices"
        try:
            _check(recipe, wholes[0], meshes[-1])
        except UserError as obstacle:
            raise UserError(f"{which} does not divide the batch and the model: {obstacle}") from None
    return found


def own_candidate(recipe: Pretrain, where: Slice) -> Candidate | None:
    """The recipe's own choices; None where its mesh does not fit the slice, or its remat policy is not searched."""
    try:
        sizes = mesh_shape(recipe.mesh, where.devices)
        _check(recipe, Whole(known_model(recipe), recipe.data, recipe.train), sizes)
    except UserError:
        return None
    compute = recipe.compute
    own = Candidate(
        tuple(sizes.values()),
        recipe.train.parts,
        compute.remat_policy,
        compute.attention_block,
        bool(compute.unroll_layers),
        compute.vector_memory,
        compute.loss_chunk,
    )
    return own if own.remat in REMAT and sizes["replica"] == where.count else None


def _logits_at_once(recipe: Pretrain, sizes: dict[str, int], microbatches: int) -> tuple[int | None, ...]:
    """The recipe's tokens of the loss at once; else those of the shapes' default, or all: none is made again then."""
    if recipe.compute.loss_chunk is not None:
        return (recipe.compute.loss_chunk,)
    rows = recipe.data.batch_size // microbatches // math.prod(sizes[name] for name in ROW_AXES)
    return None, rows * recipe.data.sequence_length // sizes["sequence"]


def _meshes(where: Slice) -> Iterator[dict[str, int]]:
    """All sizes of data, fsdp, sequence and tensor whose product is a slice's devices; `replica` goes across slices."""
    inside = where.devices // where.count
    for data, fsdp, sequence in _factors(inside, 3):
        tensor = inside // (data * fsdp * sequence)
        yield dict(zip(AXES, (where.count, data, fsdp, sequence, tensor), strict=True))


def _factors(whole: int, count: int) -> Iterator[tuple[int, ...]]:
    """All `count` numbers whose product divides `whole`."""
    if count == 0:
        yield ()
        return
    for first in (n for n in range(1, whole + 1) if whole % n == 0):
        for rest in _factors(whole // first, count - 1):
            yield (first, *rest)


def _microbatches(recipe: Pretrain) -> list[int]:
    rows = math.gcd(recipe.data.batch_size, recipe.data.ramp_from or recipe.data.batch_size)
    divisors = (n for n in range(1, rows + 1) if rows % n == 0)
    return [n for n in divisors if n <= MOST_MICROBATCHES or n == recipe.train.microbatches]


def _uses_splash(recipe: Pretrain) -> bool:
    model = NextToken().model(resolve(recipe), "tpu")
    return model.implementation(recipe.data.sequence_length) == "splash"


def _check(recipe: Pretrain, whole: Whole, sizes: dict[str, int]) -> None:
    """Raises UserError where a mesh does not cut the recipe evenly, or rows within a register's lanes."""
    check_whole(sizes, whole)
    if not _whole_registers(recipe, sizes):
        what = f"a row of {recipe.data.sequence_length} tokens is cut below a multiple of {LANES}"
        raise UserError(f"mesh.sequence = {sizes['sequence']}: {what}; use mesh.sequence = 1")


def _whole_registers(recipe: Pretrain, sizes: dict[str, int]) -> bool:
    """Whether a row's part on one device is a multiple of a register's lanes where rows are."""
    length = recipe.data.sequence_length
    return length % LANES != 0 or length // sizes["sequence"] % LANES == 0
