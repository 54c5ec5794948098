"""The device mesh: five named axes over whatever devices there are, or over those of a slice that is planned for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmjax.errors import UserError, nearest_sizes
from lmjax.parallel.mesh_checks import Whole, check_whole
from lmjax.settings import DataSettings, MeshSettings, ModelSettings, TrainSettings

AXES = ("replica", "data", "fsdp", "sequence", "tensor")  # slowest links first


def mesh_shape(settings: MeshSettings, devices: int) -> dict[str, int]:
    """The size of every axis for so many devices, with -1 inferred. Raises UserError when they do not multiply up."""
    sizes = settings.sizes
    fixed = math.prod(size for size in sizes.values() if size != -1)
    inferred = -1 in sizes.values()

    def fits(product: int) -> bool:
        return devices % product == 0 if inferred else devices == product

    if not fits(fixed):
        wanted = f"that divides the {devices} devices" if inferred else f"of {devices}, one per device"
        advice = _advice(sizes, fixed, range(1, devices + 1), fits)
        advice += [] if inferred else ["-1 for one axis, which then takes what is left"]
        given = ", ".join(f"mesh.{name} = {size}" for name, size in _cut(sizes).items())
        raise UserError(f"{given}: expected a product {wanted}; use {', or '.join(advice)}")
    return {name: devices // fixed if size == -1 else size for name, size in sizes.items()}


def mesh_text(shape: dict[str, int]) -> str:
    """The axes that are cut, as in "fsdp=64,tensor=4"."""
    return ",".join(f"{name}={size}" for name, size in shape.items() if size > 1) or "data=1"


def _cut(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size not in (1, -1)} or {"data": 1}


def _advice(sizes: dict[str, int], fixed: int, tried: range, fits: Callable[[int], bool]) -> list[str]:
    """For each axis that is cut the nearest sizes that fit beside the others, or else the nearest products."""
    advice = []
    for name, size in _cut(sizes).items():
        others = fixed // size
        near = nearest_sizes(size, [n for n in tried if fits(n * others)])
        advice += [f"mesh.{name} = {near}"] if near else []
    return advice or [f"sizes whose product is {nearest_sizes(fixed, filter(fits, tried))}"]


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all that JAX sees) whose axes follow the physical links.

    `replica` goes across slices, over the data-centre network, where there are several; the others stay inside one.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(settings, len(devices))
    slices = {getattr(device, "slice_index", 0) for device in devices}
    sizes = tuple(shape.values())
    try:
        if len(slices) > 1 and shape["replica"] % len(slices) == 0:
            inner = (shape["replica"] // len(slices), *sizes[1:])
            outer = (len(slices), 1, 1, 1, 1)
            grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
        elif len(slices) > 1:
            fix = f"use mesh.replica = {len(slices)}"
            raise UserError(
                f"mesh.replica = {shape['replica']}: expected a multiple of the {len(slices)} slices; {fix}"
            )
        else:
            grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"mesh = {shape}: these devices cannot be laid out so: {error}; choose other sizes") from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_mesh(
    shape: dict[str, int], model: ModelSettings, data: DataSettings, microbatches: int, section: str = "data"
) -> None:
    """Raises UserError where an axis does not divide what it cuts: rows, sequence, heads, feed-forward width.

    `section` is what the recipe calls `data`.
    """
    check_whole(shape, Whole(model, data, TrainSettings(microbatches=microbatches), section))
