"""How JAX starts in a process of lmjax: which backends it tries, where compiled programs are kept, and the memory.

Where libtpu is installed, JAX loads it and asks it for devices even on a machine without a TPU. libtpu then searches
for the machine's name, prints errors and takes its time before JAX falls back on the CPU or GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.backend import register_backend_factory

from lmjax.files import cache_folder
from lmjax.parallel.host_memory import keep_freed_memory

DEVICES = Path("/dev")


def prepare_jax() -> None:
    """Call it before JAX is first used. A choice that the user has made, by a variable or in Python, stays."""
    skip_absent_tpu()
    keep_compiled_programs()
    if _has_only_cpu():
        keep_freed_memory()


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has placed it elsewhere or turned it off."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        compilation_cache.reset_cache()  # JAX decides at its first program, which a notebook may have run already


def keep_quick_programs() -> None:
    """Also keeps programs that compile in less than a second, where the user has not said from when on they are kept.

    For many short runs of few shapes.
    """
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # type: ignore[attr-defined]  # JAX's default
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def skip_absent_tpu() -> None:
    """Keeps JAX from asking libtpu for devices on a machine that has none.

    Nothing is changed where the platform is chosen, by JAX_PLATFORMS or, once it has seen a TPU on the PCI bus, by JAX
    itself; nor where there is any other sign of a TPU. Compiling for a slice that is not attached needs no device and
    still works.
    """
    if _chosen_platforms() is None and not _tpu_may_be_attached():
        register_backend_factory("tpu", _no_device, priority=0, fail_quietly=True)


def unused_accelerator() -> str | None:
    """Tells of devices that are attached while JAX computes on the CPU, unless that was chosen by JAX_PLATFORMS."""
    if _chosen_platforms() or jax.default_backend() != "cpu":
        return None
    attached = {"GPU": ("cuda", "nvidia[0-9]*"), "TPU": ("tpu", "accel[0-9]*")}
    for kind, (extra, nodes) in attached.items():
        if any(DEVICES.glob(nodes)):
            return (
                f"a {kind} is attached, but this jax does not use it and computes on the CPU; to use it, "
                f"`pip install -c constraints.txt -e '.[{extra}]'`; to leave it, set JAX_PLATFORMS=cpu"
            )
    return None


def _chosen_platforms() -> str | None:
    return jax.config.jax_platforms  # type: ignore[attr-defined]


def _has_only_cpu() -> bool:
    chosen = _chosen_platforms()
    if chosen:
        return chosen == "cpu"
    gpus = any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "kfd").exists()
    return not gpus and not _tpu_may_be_attached()


def _tpu_may_be_attached() -> bool:
    """Whether a driver offers accelerators (v4 and older, v5e and newer) or a scheduler has placed this as a worker."""
    nodes = any(DEVICES.glob("accel*")) or any((DEVICES / "vfio").glob("[0-9]*"))
    return nodes or any(name in os.environ for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "JAX_FORCE_TPU_INIT"))


def _no_device() -> Any:
    raise RuntimeError("no TPU is attached to this machine")
