"""Runs of a sweep beside each other on one host: a process for each part of its devices, for `lmjax sweep --pack`.

In: the command of a sweep and into how many parts the host's devices are cut. Each process sees its own part alone and
takes runs that no other has claimed (lmjax/runs/sweep.py). A process that dies leaves its run to the others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, nearest_sizes, require

# The box of so many chips of a host, as libtpu takes it (TPU_CHIPS_PER_PROCESS_BOUNDS)
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
FORCED = "--xla_force_host_platform_device_count"
DEVICES = Path("/dev")


def run_packed(
    command: Sequence[str], parts: int, done: Callable[[], bool], say: Callable[[str], None] = print
) -> int | None:
    """Runs the command once for each part of this host's devices, and again while processes die that left work behind.

    `done` tells whether nothing is left. A signal to this process goes to all. Returns the exit code of a user's
    mistake or of a stop by a signal; None where the processes ended by themselves. Raises UserError where the devices
    are not cut evenly.
    """
    environments = part_environments(parts)
    for _ in range(1 + parts):  # whatever kills every process of every round is no accident
        processes = [_Part(number, command, own, say) for number, own in enumerate(environments, start=1)]
        with _forwarding([part.process for part in processes]) as received:
            codes = [part.finish() for part in processes]
        if received:
            return 128 + received[0]
        for wrong in (2, *(128 + number for number in (signal.SIGINT, signal.SIGTERM))):
            if wrong in codes:
                return wrong
        died = [number for number, code in enumerate(codes, start=1) if code not in (0, 1)]
        if not died or done():
            return None
        say(f"parts {', '.join(map(str, died))} died, codes {codes}; what they left is taken up")
    raise UserError(f"--pack: {1 + parts} rounds of processes have died; run without --pack to see why")


def part_environments(parts: int, environment: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """The environment of each part: TPU chips, GPUs or, on a CPU, the devices that XLA_FLAGS force, or one."""
    require(parts > 0, "--pack", parts, "a number of parts above 0", "leave it out for one process")
    own_environment = dict(environment)
    chips, gpus = _tpu_chips(), sorted(DEVICES.glob("nvidia[0-9]*"))
    chosen = environment.get("JAX_PLATFORMS", "")
    if chips and chosen in ("", "tpu"):
        own = _each(chips, parts, "TPU chips")
        require(
            own in BOUNDS, "--pack", parts, f"parts of {', '.join(map(str, BOUNDS))} chips, not of {own}", "change it"
        )
        return [own_environment | _tpu_part(part, own) for part in range(parts)]
    if gpus and chosen in ("", "cuda", "gpu"):
        own = _each(len(gpus), parts, "GPUs")
        lists = (",".join(str(part * own + at) for at in range(own)) for part in range(parts))
        return [own_environment | {"CUDA_VISIBLE_DEVICES": each} for each in lists]
    flags = environment.get("XLA_FLAGS", "")
    forced = re.search(rf"{FORCED}=(\d+)", flags)
    if forced is None:
        return [own_environment for _ in range(parts)]
    own = _each(int(forced[1]), parts, "forced CPU devices")
    return [own_environment | {"XLA_FLAGS": flags.replace(forced[0], f"{FORCED}={own}")} for _ in range(parts)]


def _tpu_chips() -> int:
    return len(list(DEVICES.glob("accel[0-9]*"))) or len(list((DEVICES / "vfio").glob("[0-9]*")))


def _tpu_part(part: int, own: int) -> dict[str, str]:
    return {
        "TPU_VISIBLE_CHIPS": ",".join(str(part * own + at) for at in range(own)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[own],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_PORT": str(8476 + part),
        "CLOUD_TPU_TASK_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }


def _each(devices: int, parts: int, what: str) -> int:
    even = [count for count in range(1, devices + 1) if devices % count == 0]
    require(parts in even, "--pack", parts, f"a divisor of {devices} {what}", f"use {nearest_sizes(parts, even)}")
    return devices // parts


class _Part:
    """A process on its part of the devices; `say` receives its lines, with its number in front."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str], say: Callable[[str], None]):
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(number, say), daemon=True)
        self._reader.start()

    def _read(self, number: int, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            say(f"[{number}] {line.rstrip()}")

    def finish(self) -> int:
        code = self.process.wait()
        self._reader.join()
        return code


@contextmanager
def _forwarding(processes: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Sends SIGINT and SIGTERM on to the processes; the list holds those that came."""
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep_command(words: Sequence[str]) -> list[str]:
    """`lmjax sweep` with these words, by this Python."""
    return [sys.executable, "-m", "lmjax.cli", "sweep", *words]
