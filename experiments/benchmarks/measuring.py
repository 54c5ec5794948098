"""What the benchmarks share: contenders in processes of their own that take turns, and tables of their medians.

A benchmark starts its own file once more for every contender, which prepares itself, says that it is ready, and then
does what it is asked, one request at a time, while the others sleep. So nobody disturbs nobody's threads or memory, and
a machine that grows slower for a while does so for all.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

READY = {"ready": True}
PRODUCTS = "products"  # the contender that shows what the machine can do
SIDE, PRODUCT_TIMES = 2048, 4  # of a square float32 product, and how many of them it takes in a turn


class Contender:
    """A process that runs `file` with `arguments` and answers requests. Use as a context manager.

    `python` is the one that runs it, by default this one.
    """

    def __init__(self, name: str, file: str, arguments: Sequence[str], threads: int, python: str | None = None) -> None:
        self.name = name
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "JAX_PLATFORMS": "cpu",
            "TQDM_DISABLE": "1",
        }
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [python or sys.executable, file, *arguments]
        self._process = subprocess.Popen(command, env=os.environ | limits | quiet, **pipes)
        self.ready = self._read()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with exit code {self._process.wait()}; what it printed stands above")
        return json.loads(line)


def serve(prepare: Callable[[], Callable[..., dict[str, Any]]], threads: int) -> None:
    """A contender's side: prepares on `threads` processors, then answers each request with what `prepare` returned."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer = prepare()
    print(json.dumps(READY), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)


def clocked(call: Callable[[], Any]) -> dict[str, float]:
    """How long a call takes, and how much processor time of all the process's threads."""
    cpu, started = time.process_time(), time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def take_turns(contenders: Iterable[Contender], rounds: int, **request: Any) -> dict[str, list[dict[str, Any]]]:
    """Every contender's answers, one a round."""
    contenders = list(contenders)
    answers: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            answers[contender.name].append(contender.ask(**request))
    return answers


def median(answers: Iterable[dict[str, Any]], field: str = "seconds") -> float:
    return statistics.median(answer[field] for answer in answers)


def products(threads: int) -> Contender:
    """A contender that does nothing but large float32 products, by NumPy's OpenBLAS."""
    return Contender(PRODUCTS, __file__, [str(threads)], threads)


def product_rate(answers: dict[str, list[dict[str, Any]]]) -> float:
    """FLOP/s of `products`, in the turns that the others had."""
    return 2 * SIDE**3 * PRODUCT_TIMES / median(answers[PRODUCTS])


def share(flops: float, seconds: float, rate: float) -> str:
    """The share of the machine's product rate that so many FLOPs in so many seconds are."""
    return f"{flops / seconds / rate:.0%}"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column to the left, the numbers to the right."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def print_machine(threads: int) -> None:
    """The processor and how busy others keep it: a benchmark wants a quiet machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    print(f"{threads} threads on {model}; load of the last minute {os.getloadavg()[0]:.1f}")


def _prepare_products() -> Callable[[], dict[str, Any]]:
    import numpy as np

    left, right = np.random.default_rng(0).random((2, SIDE, SIDE), dtype=np.float32)

    def multiply() -> None:
        for _ in range(PRODUCT_TIMES):
            np.matmul(left, right)

    multiply()
    return lambda: clocked(multiply)


if __name__ == "__main__":
    serve(_prepare_products, int(sys.argv[1]))
