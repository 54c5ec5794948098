"""MaxText at its best for a case of `maxtext_step.py`: remat policy, vector memory, windowed products, scanned layers.

    export PYTHONPATH=. JAX_PLATFORMS=cpu
    maxtext/bin/python experiments/benchmarks/maxtext_search.py experiments/results/maxtext.jsonl gpt3_6b [CASE ...]

One choice is varied at a time, from the best so far: the policies from the one that keeps most until two have fit;
then more and less vector memory, 16 to 96 MiB, as long as it helps; then products in windows; then, for models of few
layers, each layer compiled apart; then attention's backward pass in one kernel. Every step that was compiled, and every
refusal, is a line of the file, and none that is there is compiled again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maxtext_step import CASES, Choice

POLICIES = (  # as MaxText orders them, from the most memory to the least
    *("minimal_with_context", "minimal", "save_dot_with_context_except_mlp", "save_dot_except_mlpwi"),
    *("save_dot_except_mlp", "save_qkv_proj", "full"),
)
VECTOR_MEMORY = ((64, 96), (32, 16))  # MiB, from the 48 that a search begins with upwards and downwards
UNSCANNED = ("gpt2_124m",)  # more layers, each compiled apart, take hours
Compile = Callable[[str, Choice], dict[str, Any]]


def search(case: str, compile: Compile) -> dict[str, Any]:
    """The best of a case; `compile` gives its cycles, or what was refused."""
    fitting: list[tuple[float, Choice]] = []

    def attempt(choice: Choice) -> None:
        found = compile(case, choice)
        if "gcycles" in found:
            fitting.append((found["gcycles"], choice))

    def best() -> Choice:
        return min(fitting, key=lambda pair: pair[0])[1]

    for policy in POLICIES:
        attempt(Choice(policy))
        if len(fitting) == 2:
            break
    for sizes in VECTOR_MEMORY:
        for size in sizes:
            attempt(replace(best(), vector_memory=size))
            if best().vector_memory != size:
                break
    attempt(replace(best(), windowed=True))
    if case in UNSCANNED:
        attempt(replace(best(), scanned=False))
    attempt(replace(best(), fused=True))
    return compile(case, best())


def compiled_or_kept(file: Path) -> Compile:
    """Compiles by `maxtext_step.py` what is no line of the file yet, and adds it."""
    there = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def compile(case: str, choice: Choice) -> dict[str, Any]:
        wanted = {"case": case, **asdict(choice)}
        kept = next((each for each in there if wanted.items() <= each.items()), None)
        if kept is None:
            kept = _compiled(case, choice)
            there.append(kept)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(kept) + "\n")
        print(*wanted.values(), kept.get("gcycles", kept.get("refusal")), file=sys.stderr, flush=True)
        return kept

    return compile


def _compiled(case: str, choice: Choice) -> dict[str, Any]:
    """Its line of the file. Raises CalledProcessError where something else failed than that the step does not fit."""
    options = ["--remat", choice.remat, "--vector-memory", str(choice.vector_memory)]
    options += ["--windowed"] * choice.windowed + ["--unscanned"] * (not choice.scanned) + ["--fused"] * choice.fused
    command = [sys.executable, str(Path(__file__).with_name("maxtext_step.py")), case, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    refusal = next((line for line in done.stderr.splitlines() if "RESOURCE_EXHAUSTED" in line), None)
    if refusal is None:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return {"case": case, **asdict(choice), "refusal": refusal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="lines of JSON")
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    options = parser.parse_args()
    for case in options.cases:
        print(json.dumps(search(case, compiled_or_kept(options.file))))


if __name__ == "__main__":
    main()
