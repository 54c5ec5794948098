"""Runs of several processes: how they find each other, wait for each other and stop together.

In: environment variables of the launcher (a TPU pod's, GKE's, Slurm's, or three set by hand). Out: JAX's global view
of all devices, barriers, and one decision of all processes to stop after the same step. Alone, a process needs none
of it, and every function here then does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax._src.clusters import ClusterEnv

from lmjax.errors import PeerLostError, UserError
from lmjax.parallel import peers
from lmjax.parallel.rendezvous import Facts, meet

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
COORDINATOR_SECONDS = 300  # for every process to come
MISTAKE_SECONDS = 45  # for which a process that has made a mistake before it has joined tries to tell the others
_told = False  # whether the others know that this process ends
HEARTBEAT_SECONDS = 30  # after which a peer that says nothing is taken for dead: it ends the others within a minute


def join(facts: Callable[[], Facts], environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, where the environment names any, once all are about to do the same.

    By hand: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Under srun, and on
    a TPU slice of several hosts, nothing has to be set. `facts` gives what this process is about to run. Call it before
    JAX is used. Raises UserError where the variables do not fit together, where `facts` differ, and where another
    process has made a mistake; PeerLostError where one does not come.
    """
    global _told
    _told = False
    arguments = _arguments(environment)
    if arguments is None:
        return
    if jax.distributed.is_initialized():
        if jax.process_count() > 1:
            peers.agree(facts())
        return
    place = _place(arguments)
    if place is not None:
        own = facts()
        _told = True  # whatever goes wrong there, process 0 tells all
        meet(*place, own, COORDINATOR_SECONDS)
        _told = False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPU devices only
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this run's processes did not find each other: {str(error).splitlines()[0]}; start the same command once "
            f"per host, and look at {', '.join(BY_HAND)} where they are set by hand"
        ) from error
    if jax.process_count() > 1:
        peers.watch()


def launched(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of one run the launcher has started; 1 for a process that is alone."""
    arguments = _arguments(environment)
    place = None if arguments is None else _place(arguments)
    return 1 if place is None else place[1]


def tell(message: str, code: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Tells the other processes of this run, once, that this one ends with `code`, and why. False where it is alone.

    Before they have joined, they learn of mistakes (code 2) alone; each of them then leaves with the same code.
    """
    global _told
    arguments = _arguments(environment)
    if _told or arguments is None:
        return _told
    if jax.distributed.is_initialized():
        if jax.process_count() == 1:
            return False
        _told = True
        peers.tell(f"process {jax.process_index()} of {jax.process_count()}: {message}", code)
        return True
    place = _place(arguments) if code == 2 else None
    if place is not None:
        _told = True
        with contextlib.suppress(UserError, PeerLostError):
            meet(*place, message, MISTAKE_SECONDS)
    return place is not None


def _place(arguments: dict[str, Any]) -> tuple[str, int, int] | None:
    """The address of process 0, how many there are and which this is; None for one alone, or an unknown one."""
    if not arguments:
        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, COORDINATOR_SECONDS)
        except (RuntimeError, ValueError, KeyError, OSError):  # JAX says so when it is asked to join
            return None
        names = ("coordinator_address", "num_processes", "process_id")
        arguments = dict(zip(names, found[:3], strict=True))
    address, count, index = (arguments[name] for name in ("coordinator_address", "num_processes", "process_id"))
    return None if address is None or index is None or (count or 1) == 1 else (address, count, index)


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
def telling_others() -> Iterator[None]:
    """Whatever ends this process early ends the others of its run, too, with the same exit code and its message."""
    try:
        yield
    except UserError as error:
        tell(str(error), 2)
        raise
    except PeerLostError:
        raise
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        tell(f"ended early ({what}); its own log says why", 130 if interrupted else 1)
        raise


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
        if "timeout" in str(error).lower() or "timed out" in str(error).lower():
            raise PeerLostError(
                f"process {jax.process_index()} of {jax.process_count()}: another process was slower than the network "
                f"layer waits, which has not found it dead; start all of them again to resume ({_first_line(error)})"
            ) from error
        raise PeerLostError(
            f"process {jax.process_index()} of {jax.process_count()}: another process of this run has died or cannot "
            f"be reached; its own log says why; start all of them again to resume ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def is_first() -> bool:
    """Whether this is the process that writes what only one may write: logs, reports, prepared data."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        peers.barrier(name)


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
