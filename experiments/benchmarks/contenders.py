"""Contenders measured in turn, each in a process of its own, so that neither threads nor memory are shared.

A benchmark's script starts itself once per contender. A child prepares, calls `serve(run)`, and then runs once for each
line it is sent; the parent calls `interleaved` and gets seconds.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

READY = "ready"


def serve(run: Callable[[], object]) -> None:
    """Child: runs twice to warm up, then once per line of standard input, and prints how many seconds that took."""
    run(), run()
    print(READY, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


def interleaved(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, float]:
    """Parent: starts one child per contender, lets them run in turn, `rounds` times, and gives the median seconds."""
    children = {}
    for name, command in commands.items():  # one after the other, so that no start disturbs another
        child = subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children[name] = child
        if READY not in iter(lambda child=child: child.stdout.readline().strip() or child.poll(), child.poll()):
            raise SystemExit(f"{name}: ended before it was ready, with exit code {child.wait()}; see above")
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            child.stdin.write("run\n")
            child.stdin.flush()
            seconds[name].append(float(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_table(title: str, unit: str, work: float, medians: Mapping[str, float], ours: str, as_json: bool) -> None:
    """One line per contender: its rate in `unit`, `work` divided by the median, and how many times as fast we are."""
    if as_json:
        ratios = {name: seconds / medians[ours] for name, seconds in medians.items() if name != ours}
        print(json.dumps({"benchmark": title, "seconds": medians, "ratio": ratios}))
        return
    print(f"{title:<44} {'seconds':>10} {unit:>14} {ours + ' is':>14}")
    for name, seconds in medians.items():
        times = "" if name == ours else f"{seconds / medians[ours]:.2f}x as fast"
        print(f"{name:<44} {seconds:>10.3f} {work / seconds:>14,.0f} {times:>14}")
