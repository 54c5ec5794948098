"""What the compiler of each platform is told for a training step, and why; everything else stays at its default.

The latency-hiding scheduler and asynchronous collectives are on by default in libtpu: plans show gathers that start
before the products that they run beside.
"""

from __future__ import annotations

from jax.sharding import Mesh

# By the start of jax's `device_kind`, in this order. Of the vector memory (VMEM) one fusion gets 16 MiB by default;
# with more, the products of wide layers are tiled in larger pieces. Half of v5e's 128 MiB, and three quarters of v5p's
# 64, gave the fewest cycles of those tried, on the plans of 22B and 175B; v6e was not tried beyond 32 MiB.
_BY_KIND: tuple[tuple[str, dict[str, str]], ...] = (
    ("TPU v4", {}),
    ("TPU v5 lite", {"xla_tpu_scoped_vmem_limit_kib": "65536"}),
    ("TPU v5", {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
    ("TPU v6", {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for `jax.jit`, by the kind of the mesh's devices."""
    kind = mesh.devices.flat[0].device_kind
    return next((options for start, options in _BY_KIND if kind.startswith(start)), {})
