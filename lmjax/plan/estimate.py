"""What a compiled step would take of a slice: memory, cycles, seconds, tokens per second, and what bounds it.

In: a recipe, a slice and the compiler's program or refusal. Out: an `Estimate`, all of whose figures are of one
device unless they say otherwise. Nothing here was measured on a chip: cycles are the TPU compiler's own estimate, and
what it leaves out, Pallas kernels and collectives, is worked out from shapes and the chip's published rates.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lmjax.model.attention_blocks import BLOCK, largest_block
from lmjax.parallel.chips import GIB, filled
from lmjax.parallel.mesh import mesh_shape
from lmjax.plan.attention_blocks import splash_products, visited_share
from lmjax.plan.compile import Compiled, OutOfMemory
from lmjax.plan.hlo import Collective, Costs, KernelCall, costs, parse
from lmjax.plan.parts import parts
from lmjax.plan.slices import NETWORK_BANDWIDTH, Slice
from lmjax.plan.target import Target
from lmjax.settings import AttentionSettings
from lmjax.tasks.program import Cost
from lmjax.training.phases import phase_of

TERA = 1e12
OTHER = "other"  # what belongs to no phase


class ImpossibleEstimateError(Exception):
    """A figure that no chip can reach, or a kernel that cannot be read: a fault of the estimate, not of the recipe."""


@dataclass(frozen=True)
class AxisTraffic:
    """Collectives over one mesh axis, or over several at once.

    GiB of their results, GiB that a device sends for them in a ring, and their time on the links.
    """

    axis: str
    kinds: dict[str, int]  # how many of each ran
    gib: float
    sent_gib: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A step of a recipe on a slice, per device."""

    recipe: str
    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    remat: str
    rows_per_step: int
    sequence_length: int
    parameters: int
    fits: bool
    hbm_gib: float  # that a program may use
    peak_hbm_gib: float
    arguments_gib: float | None = None
    temporaries_gib: float | None = None
    host_gib: float | None = None  # offloaded: it goes to the host and back in a step, which no figure of time counts
    over_by_gib: float | None = None
    compile_seconds: float | None = None
    gcycles: float | None = None  # the compiler's, without kernels and collectives
    model_tflop: float | None = None  # what the model needs: of a training step, forward and backward
    executed_tflop: float | None = None  # what the program does, kernels included
    remat_overhead: float | None = None  # matrix products that are made again, as a share of the model's
    matrix_units: float | None = None  # the share of these cycles that products at the chip's peak would take
    cycles_by_part: dict[str, float] | None = None  # shares of these cycles: see `lmjax.plan.parts`
    compute_seconds: float | None = None  # gcycles at the chip's clock
    phases: dict[str, float] | None = None  # shares of computing and kernels, of a program that has several
    kernel_seconds: float | None = None  # Pallas kernels at the chip's peak, or at its HBM's
    collective_gib: float | None = None
    collective_sent_gib: float | None = None
    collective_seconds: float | None = None
    collectives: tuple[AxisTraffic, ...] = ()
    step_seconds: float | None = None  # the longer of computing and communicating
    tokens_per_second: float | None = None  # over all devices
    mfu: float | None = None
    mfu_without_attention: float | None = None  # 6 N D over the compiler's cycles alone: as MaxText's tables count
    bound_by: str | None = None
    unknown_loops: int = 0
    step: str = "train"
    microbatches: int = 1
    unrolled_layers: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def estimate(target: Target, where: Slice, mesh: Mesh, outcome: Compiled | OutOfMemory) -> Estimate:
    """All figures of a program, or those of a refusal."""
    recipe, cost = target.recipe, target.cost
    common: dict[str, Any] = {
        "recipe": recipe.name,
        "step": target.step,
        "topology": where.name,
        "chips": where.chips,
        "devices": where.devices,
        "mesh": mesh_shape(recipe.mesh, where.devices),
        "remat": recipe.compute.remat_policy,
        "microbatches": recipe.train.parts if target.step == "train" else 1,
        "unrolled_layers": bool(recipe.compute.unroll_layers),
        "rows_per_step": cost.rows,
        "sequence_length": cost.length,
        "parameters": cost.parameters,
        "hbm_gib": where.device_hbm / GIB,
    }
    if isinstance(outcome, OutOfMemory):
        over = (outcome.needed - outcome.available) / GIB
        return Estimate(**common, fits=False, peak_hbm_gib=outcome.needed / GIB, over_by_gib=over)
    spent = costs(parse(outcome.text))
    return Estimate(
        **common,
        fits=True,
        peak_hbm_gib=outcome.peak / GIB,
        arguments_gib=outcome.arguments / GIB,
        temporaries_gib=outcome.temporaries / GIB,
        host_gib=outcome.host / GIB,
        compile_seconds=outcome.seconds,
        unknown_loops=spent.unknown_loops,
        **_speed(cost, where, mesh, spent, recipe.compute.attention_block),
    )


def _speed(cost: Cost, where: Slice, mesh: Mesh, spent: Costs, block: int | None) -> dict[str, Any]:
    kernels = [call for call in spent.kernels if call.target == "tpu_custom_call"]
    attention = cost.models[0].attention
    kernel_flops = sum(call.count * kernel_work(call, attention, block) for call in kernels)
    seconds_of = [(call.place, call.count * _kernel_seconds(call, attention, block, where)) for call in kernels]
    kernel_seconds = sum(seconds for _, seconds in seconds_of)
    compute_seconds = spent.cycles / where.chip.clock
    seconds_of += [(source.name, cycles / where.chip.clock) for source, cycles in spent.sources.items()]
    traffic = collective_traffic(spent.collectives, mesh, where)
    collective_seconds = sum(each.seconds for each in traffic)
    step_seconds = max(compute_seconds + kernel_seconds, collective_seconds)
    needed, executed = cost.flops / where.devices, spent.flops + kernel_flops
    scores = (cost.scores + cost.cached) / where.devices
    in_kernels = cost.scores / where.devices if kernels else 0.0
    shares = {
        "mfu": needed / step_seconds / where.device_flops,
        "mfu_without_attention": (needed - scores) / compute_seconds / where.device_flops,
    }
    matrix_units = spent.flops / compute_seconds / where.device_flops
    _check_shares(shares | {"share of the matrix units": matrix_units}, needed, spent, kernel_flops, step_seconds)
    return {
        "gcycles": spent.cycles / 1e9,
        "matrix_units": matrix_units,
        "cycles_by_part": {part: cycles / spent.cycles for part, cycles in parts(spent.sources).items()},
        "phases": _phases(seconds_of),
        "model_tflop": needed / TERA,
        "executed_tflop": executed / TERA,
        "remat_overhead": spent.flops / (needed - in_kernels) - 1,
        "compute_seconds": compute_seconds,
        "kernel_seconds": kernel_seconds,
        "collective_gib": sum(each.gib for each in traffic),
        "collective_sent_gib": sum(each.sent_gib for each in traffic),
        "collective_seconds": collective_seconds,
        "collectives": tuple(traffic),
        "step_seconds": step_seconds,
        "tokens_per_second": cost.tokens / step_seconds,
        **shares,
        "bound_by": _bound(where, spent.flops, compute_seconds, kernel_seconds, traffic),
    }


def _phases(seconds_of: Sequence[tuple[str, float]]) -> dict[str, float] | None:
    """Shares of these seconds by the phase that their operations belong to, the longest first; None without phases."""
    found: dict[str, float] = {}
    for place, seconds in seconds_of:
        name = phase_of(place) or OTHER
        found[name] = found.get(name, 0.0) + seconds
    total = sum(found.values())
    longest = sorted(found, key=lambda name: -found[name])
    return {name: found[name] / total for name in longest} if set(found) > {OTHER} else None


def _check_shares(
    shares: dict[str, float], needed: float, spent: Costs, kernel_flops: float, step_seconds: float
) -> None:
    """Raises ImpossibleEstimateError where a share of the chip's peak is above 1: something was not counted."""
    beyond = ", ".join(f"{name} {share:.4f}" for name, share in shares.items() if not share <= 1.0)
    if beyond:
        kernels = Counter(call.name for call in spent.kernels)
        raise ImpossibleEstimateError(
            f"{beyond}, where 1 is the chip's peak: {needed / TERA:.4f} TFLOP needed of a device; counted were "
            f"{spent.flops / TERA:.4f} in products and {kernel_flops / TERA:.4f} in kernels, {spent.cycles} cycles, "
            f"{step_seconds:.6f} s, {spent.unknown_loops} loops of unknown length, kernels {dict(kernels)}; please "
            "report this with the recipe and the topology"
        )


def _bound(
    where: Slice, flops: int, compute_seconds: float, kernel_seconds: float, traffic: Sequence[AxisTraffic]
) -> str:
    """In words: the links, or the kernels, or the matrix units, or what keeps them waiting."""
    communicating = sum(each.seconds for each in traffic)
    if communicating > compute_seconds + kernel_seconds:
        worst = max(traffic, key=lambda each: each.seconds)
        return f"collectives over {worst.axis}"
    if kernel_seconds > compute_seconds:
        return "Pallas kernels"
    busy = flops / where.device_flops / compute_seconds
    return "matrix units" if busy > 0.6 else "HBM and vector units"


def kernel_work(call: KernelCall, attention: AttentionSettings, block: int | None = None, unit: int = 1) -> float:
    """FLOPs of one kernel call: its own estimate, or for splash attention those of the blocks that its masks leave.

    `block` is `compute.attention_block`. With a `unit` heads count as if they were as wide as the matrix units of such
    a side that they occupy.
    """
    if call.flops is not None:
        return float(call.flops)
    if "splash" not in call.name:
        return 0.0
    # Queries [..., T, K], then keys [..., S, K]: rows and heads stand before, but axes of size 1 may have been dropped.
    arrays = [a.dims for a in call.operands if a.dtype in ("bf16", "f32") and len(a.dims) >= 2]
    if len(arrays) < 2 or arrays[0][-1] != arrays[1][-1]:
        raise ImpossibleEstimateError(f"{call.name}: no queries and keys among its operands {call.operands}")
    queries, length = arrays[0], arrays[1][-2]
    made = splash_products(length, block)
    products = next((n for part, n in made.items() if f"_{part}_" in f"{call.name}_"), None)
    if products is None:
        raise ImpossibleEstimateError(f"{call.name}: none of the kernels {', '.join(made)} of {length} keys")
    side = largest_block(length, block or BLOCK)
    seen = visited_share(attention, length, side, side)
    return 2.0 * products * math.prod(queries[:-1]) * length * filled(queries[-1], unit) * seen


def _kernel_seconds(call: KernelCall, attention: AttentionSettings, block: int | None, where: Slice) -> float:
    work = kernel_work(call, attention, block, where.chip.unit)
    return max(work / where.device_flops, call.bytes / where.device_bandwidth)


def collective_traffic(collectives: Sequence[Collective], mesh: Mesh, where: Slice) -> list[AxisTraffic]:
    """Collectives by the mesh axes that their groups run along, the slowest first.

    Time: what a device sends at the rate of its links along the group's physical axes, both ways round; across slices
    at the network's.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for each in collectives:
        if len(each.group) < 2:
            continue
        names = "x".join(_axes_of(each.group, mesh)) or "none"
        sums = found.setdefault(names, {}).setdefault(each.kind, [0.0, 0.0, 0.0, 0.0])
        sums[0] += each.count
        sums[1] += each.bytes
        sums[2] += each.sent
        sums[3] += each.sent / _bandwidth(each.group, mesh, where)
    traffic = [
        AxisTraffic(
            names,
            {kind: int(sums[0]) for kind, sums in kinds.items()},
            sum(sums[1] for sums in kinds.values()) / GIB,
            sum(sums[2] for sums in kinds.values()) / GIB,
            sum(sums[3] for sums in kinds.values()),
        )
        for names, kinds in found.items()
    ]
    return sorted(traffic, key=lambda each: -each.seconds)


def _axes_of(group: tuple[int, ...], mesh: Mesh) -> list[str]:
    """The mesh axes along which a group's devices differ."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    return [name for name, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1]


def _bandwidth(group: tuple[int, ...], mesh: Mesh, where: Slice) -> float:
    """Bytes/s that one device can send into a group: two links for every physical axis that the group spans."""
    devices = mesh.devices.reshape(-1)[list(group)]
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return NETWORK_BANDWIDTH / where.chip.devices
    spanned = [len(set(row)) for row in zip(*(device.coords for device in devices), strict=True)]
    links = sum(1 if size == 2 else 2 for size in spanned if size > 1)
    return max(links, 1) * where.chip.link_bandwidth / where.chip.devices
