"""Compiles a recipe's step for a TPU slice that is not attached, with libtpu's own compiler, on this machine.

In: a recipe, a slice. Out: a `Compiled`, or an `OutOfMemory` that says by how much. Nothing runs and no memory for a
model is taken; the host needs no TPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from lmjax.errors import UserError
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.slices import Slice
from lmjax.plan.target import Target

# libtpu reads these when it is loaded: it must not ask a cloud's metadata server what machine this is, nor take the
# lock by which a training run holds a machine's TPUs.
LIBRARY_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Compiled:
    """A compiled step and what it needs of one device's memory, in bytes."""

    executable: Any
    text: str
    arguments: int  # the state and the batch; results take their place
    temporaries: int
    peak: int
    seconds: float  # that compiling took
    lowered: Any = None  # what was compiled
    host: int = 0  # of the host's memory, for what a remat policy offloads


@dataclass(frozen=True)
class OutOfMemory:
    """The compiler's refusal: what the step needs of a device and what there is, in bytes."""

    needed: int
    available: int
    message: str


def slice_devices(where: Slice) -> list[Any]:
    """The devices of a slice that is not attached. Raises UserError where libtpu is missing or does not know it."""
    keep_to_cpu()
    try:
        with _quiet():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=where.library_name, **where.library_options
            ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology {where.name!r}: libtpu does not know {where.library_name!r}: {error}") from error


def compile_step(target: Target, where: Slice) -> Compiled | OutOfMemory:
    """Compiles the step that `lmjax run` would run on that slice, on the recipe's mesh, or another of its programs.

    Raises UserError where the mesh does not fit the slice, the model or the batch.
    """
    lowered = target.lower(slice_mesh(target, where))
    begin = time.perf_counter()
    try:
        with _quiet():
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = read_refusal(str(error))
        if refusal is None:
            raise
        return refusal
    memory = executable.memory_analysis()
    assert memory is not None
    return Compiled(
        executable,
        executable.as_text() or "",
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        _peak(memory),
        time.perf_counter() - begin,
        lowered,
        memory.host_temp_size_in_bytes,
    )


def _peak(memory: Any) -> int:
    """Of the device. The compiler's own counts the host's memory, too: where there is any, all that is allocated."""
    if not memory.host_temp_size_in_bytes:
        return memory.peak_memory_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def slice_mesh(target: Target, where: Slice) -> Mesh:
    """The recipe's mesh over the devices of a slice. Raises UserError where it does not fit."""
    mesh = make_mesh(target.recipe.mesh, slice_devices(where))
    target.check(dict(mesh.shape))
    return mesh


def read_refusal(message: str) -> OutOfMemory | None:
    """What the compiler's error says of memory; None where it is about something else."""
    used = re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", message)
    used = used or re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", message)
    if used is None:
        return None
    needed, available = (_bytes(text) for text in used.groups())
    return OutOfMemory(needed, available, message.splitlines()[0])


def _bytes(text: str) -> int:
    unit = text[-1] if text[-1] in "KMGT" else ""
    return round(float(text.removesuffix(unit)) * 1024 ** " KMGT".index(unit or " "))


def keep_to_cpu() -> None:
    """Sets the environment before libtpu is loaded, and keeps JAX from looking for a TPU of this machine's."""
    if importlib.util.find_spec("libtpu") is None:
        fix = "in lmjax's own folder, run pip install -c constraints.txt -e '.[tpu]'"
        raise UserError(f"libtpu: expected the TPU's compiler, which is not installed; {fix}")
    for name, value in LIBRARY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    config: Any = jax.config
    if not config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libtpu writes to standard error, past Python, from the user."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
