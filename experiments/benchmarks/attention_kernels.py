"""Pallas kernels of causal attention by themselves, forward and backward: jax's splash attention beside tokamax's.

    python3.11 -m venv kernels && kernels/bin/pip install -c constraints.txt -e '.[tpu]'
    kernels/bin/pip install --no-deps tokamax==0.0.12 qwix==0.1.8
    kernels/bin/pip install einshape immutabledict jaxtyping pydantic typeguard==2.13.3
    kernels/bin/python experiments/benchmarks/attention_kernels.py

Each is first held to `einsum` in interpret mode, then compiled by libtpu for the rows of one device of a planned
benchmark. The compiler has no cycles for Pallas kernels, so that what is printed of them are products of matrices (of
the blocks that the mask leaves, at the chip's peak), and the bytes of operands and results; the cycles are those of
XLA's operations around them, among them the sum of the parts of the queries' gradient.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as jax_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as jax_mask
from jax.sharding import SingleDeviceSharding
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as tokamax_kernel
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as tokamax_mask

from lmjax.model.attention import attention
from lmjax.model.attention_blocks import BLOCK
from lmjax.model.attention_tpu import block_sizes, over_rows
from lmjax.model.masks import Mask
from lmjax.parallel.chips import filled
from lmjax.plan.attention_blocks import FUSED_PRODUCTS, SPLASH_PRODUCTS, visited_share
from lmjax.plan.compile import slice_devices
from lmjax.plan.hlo import costs, parse
from lmjax.plan.slices import Slice, find_slice
from lmjax.settings import AttentionSettings

MIB = 2**20


class Shape(NamedTuple):
    """The rows of one device."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int

    def arrays(self) -> list[tuple[int, ...]]:
        """Of queries, keys, values and the gradient of the output, [B, H, T, K]."""
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [(self.rows, each, self.length, self.head_dim) for each in heads]


CASES = {
    "GPT-2 124M": ("v5e-16", Shape(16, 1024, 12, 12, 64)),
    "GPT-3 22B": ("v5e-256", Shape(4, 1024, 64, 64, 96)),
    "GPT-3 6B": ("v5e-64", Shape(2, 2048, 32, 32, 128)),
    "Llama-2 7B": ("v5p-64", Shape(2, 2048, 32, 32, 128)),
    "GPT-3 175B": ("v5p-1024", Shape(2, 2048, 96, 96, 128)),
    "Llama-3 8B": ("v5p-64", Shape(2, 8192, 32, 8, 128)),
}
TINY = Shape(1, 512, 4, 2, 128)


def jax_splash(shape: Shape, block: int, interpret: bool, fused: bool) -> Any:
    """Jax's kernel of a row, or of the heads that share a key; its backward pass in one kernel or in two."""
    sizes = block_sizes(shape.length, shape.length, block)
    apart = None if fused else sizes.block_q
    sizes = dataclasses.replace(sizes, block_q_dq=apart, block_kv_dq=apart, use_fused_bwd_kernel=fused)
    grouped = shape.heads != shape.kv_heads
    make = jax_kernel.make_splash_mqa if grouped else jax_kernel.make_splash_mha
    heads = shape.heads // shape.kv_heads if grouped else shape.heads
    visible = jax_mask.MultiHeadMask([jax_mask.CausalMask((shape.length, shape.length))] * heads)
    return make(mask=visible, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def tokamax_splash(shape: Shape, block: int, interpret: bool, scheduler: bool) -> Any:
    """Tokamax's kernel with the same blocks."""
    sizes = block_sizes(shape.length, shape.length, block)
    config = tokamax_kernel.SplashConfig(
        block_q=sizes.block_q,
        block_kv=sizes.block_kv,
        block_kv_compute=sizes.block_kv_compute,
        block_q_dkv=sizes.block_q_dkv,
        block_kv_dkv=sizes.block_kv_dkv,
        block_kv_dkv_compute=sizes.block_kv_dkv_compute,
        use_experimental_scheduler=scheduler,
        interpret=interpret,
    )
    grouped = shape.heads != shape.kv_heads
    make = tokamax_kernel.make_splash_mqa if grouped else tokamax_kernel.make_splash_mha
    return make(mask=tokamax_mask.CausalMask((shape.length, shape.length)), config=config, q_seq_shards=1)


KERNELS: dict[str, tuple[Callable[[Shape, int, bool], Any], dict[str, int]]] = {
    "jax, dq apart": (lambda *given: jax_splash(*given, fused=False), SPLASH_PRODUCTS),
    "jax, fused": (lambda *given: jax_splash(*given, fused=True), FUSED_PRODUCTS),
    "tokamax": (lambda *given: tokamax_splash(*given, scheduler=False), FUSED_PRODUCTS),
    "tokamax, scheduler": (lambda *given: tokamax_splash(*given, scheduler=True), FUSED_PRODUCTS),
}


def gradients(call: Any) -> Callable[..., Any]:
    """Output and gradients of the kernel over all rows, from queries, keys, values and the output's gradient."""

    def backward(q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array) -> Any:
        out, pull = jax.vjp(lambda q, k, v: over_rows(call, q, k, v, None), q, k, v)
        return out, *pull(gradient.astype(out.dtype))

    return backward


def difference(name: str) -> float:
    """The largest to `einsum`, of values and gradients, in interpret mode and float32."""
    rng = np.random.default_rng(0)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal(each), jnp.float32) for each in TINY.arrays())

    def einsum(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
        return jnp.swapaxes(attention(q, k, v, Mask(True, None), implementation="einsum", scale=1.0), 1, 2)

    out, pull = jax.vjp(einsum, q, k, v)
    call = KERNELS[name][0](TINY, 128, True)
    found = jax.jit(gradients(call))(q, k, v, gradient)
    return max(float(abs(one - other).max()) for one, other in zip(found, (out, *pull(gradient)), strict=True))


def row(name: str, shape: Shape, where: Slice) -> str:
    """A line of the table."""
    make, products = KERNELS[name]
    place = SingleDeviceSharding(slice_devices(where)[0])
    arrays = [jax.ShapeDtypeStruct(each, jnp.bfloat16, sharding=place) for each in shape.arrays()]
    backward = jax.jit(gradients(make(shape, BLOCK, False)))
    options = {"xla_tpu_scoped_vmem_limit_kib": str(32 * 1024)}
    program = backward.lower(*arrays).compile(compiler_options=options)
    spent, memory = costs(parse(program.as_text() or "")), program.memory_analysis()
    kernels = [call for call in spent.kernels if call.target == "tpu_custom_call"]
    side = min(BLOCK, shape.length)
    seen = visited_share(AttentionSettings(heads=shape.heads), shape.length, side, side)
    scores = shape.rows * shape.heads * shape.length**2 * seen
    wide = filled(shape.head_dim, where.chip.unit)  # of matrix units that a head occupies
    seconds = sum(products.values()) * 2 * scores * wide / where.device_flops
    figures = (
        f"{sum(products.values())}",
        f"{1000 * seconds:.2f}",
        f"{sum(call.count * call.bytes for call in kernels) / MIB:.0f}",
        f"{1000 * spent.cycles / where.chip.clock:.2f}",
        f"{memory.temp_size_in_bytes / MIB:.0f}",
    )
    return f"| {name} | {' | '.join(figures)} |"


def main() -> None:
    for name in KERNELS:
        print(f"{name}: at most {difference(name):.1e} from einsum, float32, in interpret mode", flush=True)
    print("\n| | products | ms of them at the peak | MiB read and written | ms of XLA beside | MiB of temporaries |")
    print("|---|---|---|---|---|---|")
    for case, (topology, shape) in CASES.items():
        print(f"| **{case}, {topology}** | | | | | |")
        for name in KERNELS:
            print(row(name, shape, find_slice(topology)), flush=True)


if __name__ == "__main__":
    main()
