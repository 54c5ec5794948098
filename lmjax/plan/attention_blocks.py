"""How long splash attention takes by the size of its blocks: a model, because the compiler says nothing of it.

The compiler's estimate has no cycles for Pallas kernels. What is known of a block size are the blocks that masks and
bands leave to be computed, at the chip's peak; the keys and values that are read again for every block of queries, at
the HBM's rate; and that every step of the kernel's grid costs something by itself, for which GRID_STEP is assumed. The
compiler then says whether a block fits the vector memory. Measure before trusting a choice between close sizes.
"""

from __future__ import annotations

from lmjax.model.attention_blocks import BLOCK, largest_block
from lmjax.parallel.chips import filled
from lmjax.plan.slices import Slice
from lmjax.settings import ModelSettings

# Products of [T, K] x [K, S] size that each of the splash kernels makes (Dao et al. 2022, algorithms 1 and 4).
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
GRID_STEP = 0.35e-6  # seconds: an assumption, not a measurement
MARGIN = 0.15  # of the time that another block must save: a smaller gain is less than the model can tell
SIZES = (512, 1024, 2048)  # smaller ones spend more on what this model leaves out


def kernel_seconds(
    model: ModelSettings, length: int, parts: int, block: int | None, where: Slice, forward: int
) -> float:
    """Seconds of one head of one row in all layers, on each of the `parts` devices over which a row's queries are cut.

    The forward kernel runs `forward` times, each backward kernel once. `block` is `compute.attention_block`.
    """
    most = block or BLOCK
    queries, keys = largest_block(length // parts, most), largest_block(length, most)
    kinds = model.attention.pattern
    visited = sum(visited_blocks(length, queries, keys, model.attention.band_of(k)) for k in kinds)
    width = filled(model.head_dim, where.chip.unit)
    read = 2 * 2 * keys * model.head_dim / where.device_bandwidth
    seconds = 0.0
    for kernel, products in SPLASH_PRODUCTS.items():
        made = 2 * products * queries * keys * width / where.device_flops
        seconds += (forward if kernel == "fwd" else 1) * (max(made, read) + GRID_STEP)
    return model.layers / len(kinds) * visited / parts * seconds


def best_block(model: ModelSettings, length: int, parts: int, where: Slice) -> int | None:
    """The quickest of `SIZES` for rows of `length` tokens cut in `parts`; None, the default, unless it gains MARGIN."""

    def seconds(block: int | None) -> float:
        return kernel_seconds(model, length, parts, block, where, 1)

    quickest = min(SIZES, key=seconds)
    return quickest if seconds(quickest) < (1 - MARGIN) * seconds(None) else None


def visited_blocks(length: int, queries: int, keys: int, band: int | None) -> int:
    """Blocks of scores that a causal mask, and a band where there is one, leave of a row."""
    total = 0
    for start in range(0, length, queries):
        first = 0 if band is None else max(0, start - band + 1) // keys
        total += (start + queries - 1) // keys - first + 1
    return total
