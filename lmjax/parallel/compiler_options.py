"""What the compiler of each platform is told for a training step, and why; everything else stays at its default.

The latency-hiding scheduler and asynchronous collectives are on by default in libtpu: plans show gathers that start
before the products that they run beside.
"""

from __future__ import annotations

from jax.sharding import Mesh

# By the start of jax's `device_kind`, in this order. Of the vector memory (VMEM, 64 to 128 MiB) one fusion gets 16 MiB
# by default; with twice as much the products of wide layers are tiled without splitting their sums.
_BY_KIND: tuple[tuple[str, dict[str, str]], ...] = (
    ("TPU v4", {}),
    ("TPU v5 lite", {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
    ("TPU v5", {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
    ("TPU v6", {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for `jax.jit`, by the kind of the mesh's devices."""
    kind = mesh.devices.flat[0].device_kind
    return next((options for start, options in _BY_KIND if kind.startswith(start)), {})
