"""Which backends JAX tries: leaves out a TPU that is not there.

Where libtpu is installed, JAX loads it and asks it for devices even on a machine without a TPU. libtpu then searches
for the machine's name, prints errors and takes its time before JAX falls back on the CPU or GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from jax.extend.backend import register_backend_factory

DEVICES = Path("/dev")


def skip_absent_tpu() -> None:
    """Keeps JAX from asking libtpu for devices on a machine that has none; call it before JAX is first used.

    Nothing is changed where the platform is chosen, by JAX_PLATFORMS or, once it has seen a TPU on the PCI bus, by JAX
    itself; nor where there is any other sign of a TPU. Compiling for a slice that is not attached needs no device and
    goes on working.
    """
    if _chosen_platforms() is None and not _tpu_may_be_attached():
        register_backend_factory("tpu", _no_device, priority=0, fail_quietly=True)


def _chosen_platforms() -> str | None:
    return jax.config.jax_platforms  # type: ignore[attr-defined]


def _tpu_may_be_attached() -> bool:
    """Whether a driver offers accelerators (v4 and older, v5e and newer) or a scheduler has placed this as a worker."""
    nodes = any(DEVICES.glob("accel*")) or any((DEVICES / "vfio").glob("[0-9]*"))
    return nodes or any(name in os.environ for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "JAX_FORCE_TPU_INIT"))


def _no_device() -> Any:
    raise RuntimeError("no TPU is attached to this machine")
