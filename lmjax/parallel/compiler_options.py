"""The options of each platform's compiler for a training step, with reasons; all others stay at their defaults.

The latency-hiding scheduler and asynchronous collectives are on by default in libtpu: plans show gathers that start
before the products that they run beside (tests/plan/test_planner.py). XLA's for GPUs is off in jaxlib 0.10.2 and stays
so: it takes memory to hide collectives, which one GPU has not, and several were never measured here; who has them can
set XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true.
"""

from __future__ import annotations

from jax.sharding import Mesh

from lmjax.settings import ComputeSettings

# By the start of jax's `device_kind`: MiB of the vector memory (VMEM, 128 MiB on v5e and 64 on v5p) that one fusion may
# use; libtpu's own default is 16. With more, the products of wide layers are tiled in larger pieces, and what is kept
# there between fusions has less room, so that the best is a matter of the model. Gcycles with 32, 48 and 64 MiB of the
# plans in experiments/benchmarks/: 22B on v5e 5.100, 5.029, 5.039; 6B on v5e 1.242, 1.253, 1.264; Llama-2 7B on v5p
# 0.782, 0.762, 0.760; 175B on v5p 18.68, 18.50 and not tried; of the preset gpt2_124m in plan_presets.py 0.4745, 0.4975
# and not tried. On v6e with 32, 64 and 96: 2.7B 0.615, 0.576, 0.612; Llama-3 8B 1.760, 1.651 and not tried. v4 was not
# tried beyond 16 MiB. The first start that fits counts.
_VECTOR_MEMORY = {"TPU v5 lite": 32, "TPU v5e": 32, "TPU v5": 48, "TPU v6": 64}


def compiler_options(mesh: Mesh, compute: ComputeSettings = ComputeSettings()) -> dict[str, str]:
    """Options for `jax.jit`, by the kind of the mesh's devices; `compute.vector_memory` matters on TPU only."""
    kind = mesh.devices.flat[0].device_kind
    usual = next((size for start, size in _VECTOR_MEMORY.items() if kind.startswith(start)), None)
    size = compute.vector_memory or usual
    return {"xla_tpu_scoped_vmem_limit_kib": str(1024 * size)} if size and kind.startswith("TPU") else {}
