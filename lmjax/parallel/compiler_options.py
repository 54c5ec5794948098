"""What the compiler of each platform is told for a training step, and why; everything else stays at its default.

The latency-hiding scheduler and asynchronous collectives are on by default in libtpu: plans show gathers that start
before the products that they run beside.
"""

from __future__ import annotations

from jax.sharding import Mesh

# By the start of jax's `device_kind`, in this order. Of the vector memory (VMEM, 128 MiB on v5e and 64 on v5p) one
# fusion gets 16 MiB by default; with more, the products of wide layers are tiled in larger pieces. Gcycles of the plans
# in experiments/benchmarks/ with 32, 48 and 64 MiB: 22B on v5e 5.100, 5.029, 5.039; 6B on v5e 1.242, 1.253, 1.264; 175B
# on v5p 18.68, 18.50 and not tried. v6e was not tried beyond 32 MiB.
_BY_KIND: tuple[tuple[str, dict[str, str]], ...] = (
    ("TPU v4", {}),
    ("TPU v5 lite", {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
    ("TPU v5", {"xla_tpu_scoped_vmem_limit_kib": "49152"}),
    ("TPU v6", {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
)


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for `jax.jit`, by the kind of the mesh's devices."""
    kind = mesh.devices.flat[0].device_kind
    return next((options for start, options in _BY_KIND if kind.startswith(start)), {})
