"""How long lmjax takes to start: its import without JAX's, and the first step with a cold and a warm compilation cache.

    python experiments/benchmarks/startup.py

Every measurement is a fresh process; the median counts. The step is the quickstart's model in `lmjax run` itself, on
the byte tokenizer, from the start of the process to its first line of metrics.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 1.0  # seconds for the import
EVERYTHING = "lmjax, lmjax.cli, lmjax.runs.run, lmjax.runs.load, lmjax.stages.pretrain"
IMPORTS = """
import time
import jax, jax.numpy, flax.linen, optax, orbax.checkpoint
before = time.perf_counter()
import {modules}
print(time.perf_counter() - before)
"""
RUN = ["-m", "lmjax.cli", "run", "quickstart", "--only", "pretrain", "--tokenizer.kind", "byte", "--train.steps", "1"]
SMALL = ["--evaluation.batches", "1", "--evaluation.prompts", "--log.every", "1", "--data.sequence-length", "128"]


def import_seconds(modules: str) -> float:
    code = IMPORTS.format(modules=modules)
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def first_step_seconds(folder: Path, number: int) -> float:
    """A run of one step; the time until its line is in the record."""
    workdir = folder / f"run{number}"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, *RUN, *SMALL, "--workdir", str(workdir)]
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        record = workdir / "pretrain" / "metrics.jsonl"
        while '"loss"' not in record.read_text() if record.exists() else True:
            if process.poll() not in (None, 0):
                raise SystemExit(f"lmjax run ended with exit code {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    seconds = {
        "import lmjax": statistics.median(import_seconds("lmjax") for _ in range(arguments.rounds)),
        "import all that a run needs": statistics.median(import_seconds(EVERYTHING) for _ in range(arguments.rounds)),
    }
    with tempfile.TemporaryDirectory() as name:
        first_step_seconds(Path(name) / "other", 0)  # the embedded corpus is read once per installation
        seconds["first step, cold cache"] = first_step_seconds(Path(name), 0)
        warm = [first_step_seconds(Path(name), number) for number in range(1, arguments.rounds)]
        seconds["first step, warm cache"] = statistics.median(warm)
    if arguments.json:
        print(json.dumps(seconds))
        return
    print(f"{'start':<44} {'seconds':>10}")
    for what, value in seconds.items():
        note = f"   {TARGET / value:.1f}x below the target" if what.startswith("import") else ""
        print(f"{what:<44} {value:>10.3f}{note}")


if __name__ == "__main__":
    main()
