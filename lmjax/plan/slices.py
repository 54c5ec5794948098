"""TPU slices by their usual names: `v5e-256`, `v5p-1024`, `2xv6e-64`; what a chip of each can do.

In: a name as Google Cloud writes it. Out: a `Slice`, which knows how libtpu calls it, its devices and the limits of
each. The number in a name counts chips for v5e and v6e and TensorCores, two a chip, for v4, v5p and tpu7x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmjax.errors import UserError, nearest
from lmjax.parallel.chips import CHIPS, Chip

ALIASES = {"v5litepod": "v5e"}
NETWORK_BANDWIDTH = 6.25e9  # bytes/s and chip between slices: 50 Gbit/s (cloud.google.com/tpu/docs/v5p)

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
DEEP = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 4, 12), (4, 8, 8), (4, 8, 12), (8, 8, 8)),
    *((8, 8, 12), (8, 8, 16), (8, 12, 16), (8, 16, 16), (8, 16, 24), (16, 16, 16), (16, 16, 24)),
)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "v4": tuple(shape for shape in DEEP if max(shape) <= 16),
    "v5e": FLAT,
    "v5p": DEEP,
    "v6e": FLAT,
    "tpu7x": DEEP,
}


@dataclass(frozen=True)
class Slice:
    """`count` equal slices of a generation, each a box of `shape` chips."""

    name: str
    generation: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.count

    @property
    def devices(self) -> int:
        """As JAX sees them, in all slices."""
        return self.chips * self.chip.devices

    @property
    def library_name(self) -> str:
        """What libtpu calls one slice."""
        return f"{self.chip.library}:{'x'.join(map(str, self.shape))}"

    @property
    def wraps(self) -> tuple[bool, bool, bool]:
        """Along which physical axes links join both ends: without them libtpu gathers by sums of padded arrays.

        All of a 3-D slice of whole cubes of 4 x 4 x 4 chips, none of a smaller one; those of 16 chips in a 2-D one
        (cloud.google.com/tpu/docs/v5p, /v5e; as in MaxText's table of slices).
        """
        if len(self.shape) == 3:
            whole = all(size % 4 == 0 for size in self.shape)
            return whole, whole, whole
        first, second = (size == 16 for size in self.shape)
        return first, second, False

    @property
    def library_options(self) -> dict[str, Any]:
        """What libtpu must be told beside the name."""
        options = dict(self.chip.options)
        if any(self.wraps):
            options["wrap"] = self.wraps
        if self.count > 1:
            options["num_slices"] = self.count
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
        return options

    @property
    def device_flops(self) -> float:
        """Peak bfloat16 FLOP/s of a device."""
        return self.chip.flops / self.chip.devices

    @property
    def device_hbm(self) -> float:
        """Bytes that a program may use on a device."""
        return self.chip.hbm / self.chip.devices

    @property
    def device_bandwidth(self) -> float:
        """HBM bytes/s of a device."""
        return self.chip.hbm_bandwidth / self.chip.devices


def slice_of(devices: Sequence[Any]) -> Slice | None:
    """The slice that these devices are, all of its chips; None where they are no TPUs, or fill no box of a torus."""
    generation = next((name for name, chip in CHIPS.items() if re.match(chip.kind, devices[0].device_kind)), None)
    if generation is None:
        return None
    places = {(getattr(device, "slice_index", None) or 0, *device.coords) for device in devices}
    _, *extents = (len({place[axis] for place in places}) for axis in range(4))
    count = len({place[0] for place in places})
    shape = tuple(extents[: len(SHAPES[generation][0])])
    shape = shape if shape in SHAPES[generation] else tuple(sorted(shape))
    if math.prod(shape) * count * CHIPS[generation].devices != len(devices):
        return None
    size = f"{generation}-{math.prod(shape) * CHIPS[generation].cores_per_chip}"
    return Slice(size if count == 1 else f"{count}x{size}", generation, shape, count)


def names(generation: str) -> list[str]:
    """The usual slices of a generation, smallest first."""
    cores = CHIPS[generation].cores_per_chip
    return [f"{generation}-{math.prod(shape) * cores}" for shape in SHAPES[generation]]


def find_slice(name: str) -> Slice:
    """The slice of that name, in capitals or not. Raises UserError naming the nearest where there is none."""
    name = name.lower()
    match = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+)-(\d+)", name)
    known = [each for generation in CHIPS for each in names(generation)]
    if not match:
        raise UserError(f"topology {name!r}: expected a name such as 'v5e-256' or '2xv5p-512'; {nearest(name, known)}")
    count, generation, size = int(match.group(1) or 1), ALIASES.get(match.group(2), match.group(2)), int(match.group(3))
    if generation not in CHIPS:
        raise UserError(f"topology {name!r}: no TPU is called {generation!r}; {nearest(generation, CHIPS)}")
    if count < 1:
        raise UserError(f"topology {name!r}: expected at least one slice")
    cores = CHIPS[generation].cores_per_chip
    shapes = {math.prod(shape) * cores: shape for shape in SHAPES[generation]}
    if size not in shapes:
        closest = sorted(sorted(shapes, key=lambda each: abs(each - size))[:2])
        counted = "chips" if cores == 1 else "TensorCores, two a chip"
        options = " or ".join(f"{generation}-{each}" for each in closest)
        raise UserError(f"topology {name!r}: not a usual size (it counts {counted}); the nearest are {options}")
    return Slice(name, generation, shapes[size], count)
