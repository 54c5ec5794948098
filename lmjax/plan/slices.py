"""TPU slices by their usual names: `v5e-256`, `v5p-1024`, `2xv6e-64`; what a chip of each can do.

In: a name as Google Cloud writes it. Out: a `Slice`, which knows how libtpu calls it, its devices and the limits of
each. The number in a name counts chips for v5e and v6e and TensorCores, two a chip, for v4, v5p and tpu7x.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lmjax.errors import UserError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One generation. Figures are of a chip; `devices` says how many devices JAX makes of one.

    Peaks, HBM bandwidth and links: cloud.google.com/tpu/docs, the page of each generation ("bidirectional inter-chip
    interconnect bandwidth per chip" over the links, 4 in a 2-D torus and 6 in a 3-D one, and two directions).
    `hbm` is what libtpu lets a program use. The clock is the peak over the FLOPs that the matrix units do in a cycle.
    """

    library: str  # libtpu's name
    cores_per_chip: int  # that the number in a slice's name counts
    devices: int
    flops: float  # bfloat16 FLOP/s
    hbm: float  # bytes
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s, one link, one way
    clock: float  # Hz
    options: tuple[tuple[str, Any], ...] = ()  # of libtpu


CHIPS: dict[str, Chip] = {
    "v4": Chip("v4", 2, 1, 275e12, 30.75 * GIB, 1228e9, 50e9, 1.05e9, (("chip_config_name", "megacore"),)),
    "v5e": Chip("v5e", 1, 1, 197e12, 15.75 * GIB, 819e9, 50e9, 1.5e9),
    "v5p": Chip("v5", 2, 1, 459e12, 95.74 * GIB, 2765e9, 100e9, 1.75e9),
    "v6e": Chip("v6e", 1, 1, 918e12, 31.25 * GIB, 1640e9, 100e9, 1.75e9),
    "tpu7x": Chip("tpu7x", 2, 2, 2307e12, 2 * 94.75 * GIB, 7380e9, 100e9, 2.2e9),
}
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
    def library_options(self) -> dict[str, Any]:
        """What libtpu must be told beside the name."""
        options = dict(self.chip.options)
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
