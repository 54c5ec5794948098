"""How long splash attention takes by the size of its blocks: a model, because the compiler says nothing of it.

The compiler's estimate has no cycles for Pallas kernels. What is known of a block size are the blocks that masks and
bands leave to be computed, at the chip's peak; the keys and values that are read again for every block of queries, at
the HBM's rate; and that every step of the kernel's grid costs something by itself, for which GRID_STEP is assumed. The
compiler then says whether a block fits the vector memory. Measure before trusting a choice between close sizes.
"""

from __future__ import annotations

from lmjax.model.attention_blocks import BLOCK, has_fused_backward, largest_block
from lmjax.parallel.chips import filled
from lmjax.plan.slices import Slice
from lmjax.settings import AttentionSettings, ModelSettings

# Products of [T, K] x [K, S] size that each of the splash kernels makes (Dao et al. 2022, algorithms 1 and 4).
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
FUSED_PRODUCTS = {"fwd": 2, "dkv": 5}  # with the gradient of the queries made by the kernel of the keys' and values'
GRID_STEP = 0.35e-6  # seconds: an assumption, not a measurement
MARGIN = 0.15  # of the time that another block must save: a smaller gain is less than the model can tell
SIZES = (512, 1024, 2048)  # smaller ones spend more on what this model leaves out


def kernel_seconds(
    model: ModelSettings,
    length: int,
    parts: int,
    block: int | None,
    where: Slice,
    forward: int,
    grid_step: float = 0.0,
) -> float:
    """Seconds of one head of one row in all layers, on each of the `parts` devices over which a row's queries are cut.

    The forward kernel runs `forward` times, each backward kernel once. `block` is `compute.attention_block`. A step of
    the grid takes `grid_step` seconds by itself, none in an estimate of a compiled step.
    """
    most = block or BLOCK
    queries, keys = largest_block(length // parts, most), largest_block(length, most)
    visited = visited_share(model.attention, length, queries, keys) * length**2 / (queries * keys)
    width = filled(model.head_dim, where.chip.unit)
    read = 2 * 2 * keys * model.head_dim / where.device_bandwidth
    seconds = 0.0
    for kernel, products in splash_products(length, block).items():
        made = 2 * products * queries * keys * width / where.device_flops
        seconds += (forward if kernel == "fwd" else 1) * (max(made, read) + grid_step)
    return model.layers * visited / parts * seconds


def best_block(model: ModelSettings, length: int, parts: int, where: Slice) -> int | None:
    """The quickest of `SIZES` for rows of `length` tokens cut in `parts`; None, the default, unless it gains MARGIN."""

    def seconds(block: int | None) -> float:
        return kernel_seconds(model, length, parts, block, where, 1, GRID_STEP)

    quickest = min(SIZES, key=seconds)
    return quickest if seconds(quickest) < (1 - MARGIN) * seconds(None) else None


def splash_products(keys: int, block: int | None) -> dict[str, int]:
    """Products of each kernel where a row has so many keys; `block` is `compute.attention_block`."""
    return FUSED_PRODUCTS if has_fused_backward(keys, block) else SPLASH_PRODUCTS


def visited_share(attention: AttentionSettings, length: int, queries: int, keys: int) -> float:
    """The share of all blocks of scores that the masks of a row leave, averaged over the layers' pattern."""
    bands = [attention.band_of(kind) for kind in attention.pattern]
    visited = sum(visited_blocks(length, queries, keys, band, attention.causal) for band in bands)
    return visited * queries * keys / length**2 / len(bands)


def visited_blocks(length: int, queries: int, keys: int, band: int | None, causal: bool = True) -> int:
    """Blocks of scores that causality, and a band where there is one, leave of a row."""
    before = length if band is None else band - 1  # keys on a side that a query sees
    after = 0 if causal else before
    total = 0
    for start in range(0, length, queries):
        last = min(start + queries - 1 + after, length - 1)
        total += last // keys - max(0, start - before) // keys + 1
    return total
