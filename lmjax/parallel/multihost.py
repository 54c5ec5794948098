"""Runs of several processes: how they find each other, wait for each other and stop together.

In: environment variables of the launcher (a TPU pod's, GKE's, Slurm's, or three set by hand). Out: JAX's global view
of all devices, barriers, and one decision of all processes to stop after the same step. Alone, a process needs none
of it, and every function here then does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from lmjax.errors import PeerLostError, UserError, require

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
COORDINATOR_SECONDS = 300  # for process 0 to begin to listen
HEARTBEAT_SECONDS = 30  # after which a peer that says nothing is taken for dead: it ends the others within a minute


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, where the environment tells of any. Call it before JAX is used.

    By hand: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Under srun, and on
    a TPU slice of several hosts, nothing has to be set. Raises UserError where the variables do not fit together, and
    when the others do not come; PeerLostError where process 0 does not.
    """
    arguments = _arguments(environment)
    if arguments is None or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPU devices only
    if arguments.get("process_id"):
        _await(arguments["coordinator_address"], COORDINATOR_SECONDS)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this run's processes did not find each other: {str(error).splitlines()[0]}; start the same command once "
            f"per host, and look at {', '.join(BY_HAND)} where they are set by hand"
        ) from error


def _await(address: str, seconds: float) -> None:
    """Returns when process 0 listens. Raises PeerLostError where it does not: JAX itself would abort."""
    host, _, port = address.rpartition(":")
    require(port.isdecimal() and bool(host), BY_HAND[0], address, "host:port of process 0", "set it to that")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLostError(
                    f"process 0 of this run does not answer at {BY_HAND[0]} = {address} after {seconds:.0f} s "
                    f"({error}); see whether it runs, and start all of them again"
                ) from error
        time.sleep(1)


def _arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Of jax.distributed.initialize; None for a process that is alone."""
    given = {name: environment[name] for name in BY_HAND if environment.get(name)}
    if given:
        missing = [name for name in BY_HAND if name not in given]
        if missing:
            raise UserError(f"{', '.join(given)}: expected {', '.join(missing)} beside it; set all three or none")
        count, index = (_whole_number(name, given[name]) for name in BY_HAND[1:])
        if index >= count:
            raise UserError(f"{BY_HAND[2]} = {index}: expected less than {BY_HAND[1]} = {count}; they count from 0")
        return {"coordinator_address": given[BY_HAND[0]], "num_processes": count, "process_id": index}
    several_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"  # of srun, not of the shell that salloc opens
    several_hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")  # GKE sets it
    several_slices = environment.get("MEGASCALE_NUM_SLICES", "1") != "1"
    return {} if several_tasks or several_hosts or several_slices or _on_tpu_vm() else None


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name} = {text!r}: expected a whole number; set it to one")
    return int(text)


def _on_tpu_vm(devices: Path = Path("/dev")) -> bool:
    """Whether TPU chips are attached: then JAX asks the machine how many hosts its slice has."""
    return any(devices.glob("accel[0-9]*")) or (devices / "vfio" / "0").exists()


@contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Turns what JAX raises when another process dies in the middle of a computation into a PeerLostError.

    A process that waits for a dead one inside its device is ended by JAX itself, after HEARTBEAT_SECONDS.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = ("Gloo", "Connection", "heartbeat", "coordination", "UNAVAILABLE")
        if jax.process_count() == 1 or not any(word in str(error) for word in words):
            raise
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()}: another process of this run has died or cannot "
            f"be reached; its own log says why; start all of them again to go on ({str(error).splitlines()[0]})"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what only one may write: logs, reports, prepared data."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """Inside, the first process goes alone; when it is through, the others follow and find what it has made."""
    if not is_first():
        barrier(name)
    yield
    if is_first():
        barrier(name)


def agreed_to_stop(place: int) -> bool:
    """Whether some process was sent SIGTERM and this is the place where all of them save and stop.

    Places are counted from 1, one after the other: JAX agrees on the first that no process has come to.
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(place))
