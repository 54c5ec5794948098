"""What chips can do, by the makers' figures: TPU generations, and GPUs by the names that jax gives them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Chip:
    """One TPU generation. Figures are of a chip; `devices` says how many devices JAX makes of one.

    Peaks, HBM bandwidth and links: cloud.google.com/tpu/docs, the page of each generation ("bidirectional inter-chip
    interconnect bandwidth per chip" over the links, 4 in a 2-D torus and 6 in a 3-D one, and two directions).
    `hbm` is what libtpu lets a program use of `memory`. The clock is the peak over the FLOPs that the matrix units do
    in a cycle. `kind` is matched against the start of jax's `device_kind`.
    """

    kind: str
    library: str  # libtpu's name
    cores_per_chip: int  # that the number in a slice's name counts
    devices: int
    flops: float  # bfloat16 FLOP/s
    memory: int  # bytes of HBM
    hbm: float  # bytes
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s, one link, one way
    clock: float  # Hz
    options: tuple[tuple[str, Any], ...] = ()  # of libtpu
    unit: int = 128  # rows, and columns, of a matrix unit


_MEGACORE = (("chip_config_name", "megacore"),)
CHIPS: dict[str, Chip] = {
    "v4": Chip(r"TPU v4$", "v4", 2, 1, 275e12, 32 * GIB, 30.75 * GIB, 1228e9, 50e9, 1.05e9, _MEGACORE),
    "v5e": Chip(r"TPU (v5 lite|v5e)", "v5e", 1, 1, 197e12, 16 * GIB, 15.75 * GIB, 819e9, 50e9, 1.5e9),
    "v5p": Chip(r"TPU v5p?$", "v5", 2, 1, 459e12, 95 * GIB, 95.74 * GIB, 2765e9, 100e9, 1.75e9),
    "v6e": Chip(r"TPU (v6 lite|v6e)", "v6e", 1, 1, 918e12, 32 * GIB, 31.25 * GIB, 1640e9, 100e9, 1.75e9, unit=256),
    "tpu7x": Chip(r"TPU ?v?7x", "tpu7x", 2, 2, 2307e12, 192 * GIB, 2 * 94.75 * GIB, 7380e9, 100e9, 2.2e9, unit=256),
}


def filled(width: int, unit: int) -> int:
    """The rows or columns of matrix units that a product of such a width occupies: what it leaves of them idles."""
    return math.ceil(width / unit) * unit


class Peak(NamedTuple):
    """What one chip can do: bfloat16 FLOP/s and bytes of HBM. `devices` of jax's devices make one chip."""

    flops: float
    memory: int
    devices: int = 1


# What is not here, such as the smaller H100s, has no MFU rather than a wrong one.
_GPUS: tuple[tuple[str, Peak], ...] = (
    (r"NVIDIA A100.*40GB", Peak(312 * TERA, 40 * GIB)),
    (r"NVIDIA A100.*80GB", Peak(312 * TERA, 80 * GIB)),
    (r"NVIDIA H100 80GB HBM3", Peak(989 * TERA, 80 * GIB)),  # SXM
)


def device_peak(kind: str) -> Peak | None:
    """The peak of a chip by its `device_kind`, as jax names it; None for one not in the tables, such as a CPU."""
    tpus = ((chip.kind, Peak(chip.flops, chip.memory, chip.devices)) for chip in CHIPS.values())
    return next((peak for pattern, peak in (*tpus, *_GPUS) if re.match(pattern, kind)), None)
