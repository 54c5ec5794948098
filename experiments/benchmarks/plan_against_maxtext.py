"""The planner's estimate of lmjax's steps beside MaxText's best, for the same shapes and slices, and where cycles go.

    python experiments/benchmarks/plan_against_maxtext.py [gpt2_124m gpt3_6b ...]

Each case is compiled by libtpu for its slice, which takes minutes and needs no TPU. MaxText's numbers are those of
version 0.2.5 with jax 0.12.0.1 and libtpu 0.0.52, the best of all that `maxtext_search.py` compiled, which the file
`experiments/results/maxtext.jsonl` keeps. Collectives are counted by `lmjax/plan/hlo.py` in both programs: GiB that a
device sends for them in rings.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from lmjax.plan.estimate import Estimate
from lmjax.plan.planner import plan
from lmjax.settings import Pretrain
from lmjax.settings.recipe_files import load_recipe

HERE = Path(__file__).parent
STEPS = HERE.parent / "results" / "maxtext.jsonl"
HEADINGS = ("case", "Gcycles", "MaxText's", "saved", "peak GiB", "its", "sent GiB", "its", "busy", "MFU", "remat")


def maxtext() -> dict[str, dict[str, Any]]:
    """MaxText's step of the fewest cycles, for every case of the file."""
    best: dict[str, dict[str, Any]] = {}
    for step in map(json.loads, STEPS.read_text(encoding="utf-8").splitlines()):
        case, cycles = step["case"], step.get("gcycles", math.inf)
        if cycles < (best[case]["gcycles"] if case in best else math.inf):
            best[case] = step
    return best


def chosen(step: dict[str, Any]) -> str:
    """What MaxText was given, in words."""
    text = f"{step['remat']}, {step['vector_memory']} MiB"
    text += ", windowed products" * step["windowed"] + ", unscanned" * (not step["scanned"])
    return text + ", fused backward" * step["fused"]


def row(name: str, found: Estimate, its: dict[str, Any]) -> tuple[str, ...]:
    """A case's line."""
    if found.gcycles is None or found.collective_sent_gib is None:
        return name, f"does not fit: {found.over_by_gib:.2f} GiB too much"
    saved = 1 - found.gcycles / its["gcycles"]
    return (
        *(name, f"{found.gcycles:.4f}", f"{its['gcycles']:.4f}", f"{saved:.1%}"),
        *(f"{found.peak_hbm_gib:.1f}", f"{its['peak_hbm_gib']:.1f}"),
        *(f"{found.collective_sent_gib:.4g}", f"{its['collective_sent_gib']:.4g}"),
        *(f"{found.matrix_units:.1%}", f"{found.mfu:.0%}", f"{found.remat}; MaxText's: {chosen(its)}"),
    )


def benchmark(name: str) -> Pretrain:
    """The recipe of a case, whose size stands after a colon where it has one."""
    file, colon, size = name.partition(":")
    recipe: Pretrain = load_recipe(f"{HERE / f'plan_{file}.py'}{colon}{size}")
    return recipe


def main(names: list[str]) -> None:
    best = maxtext()
    print("  ".join(f"{heading:>9}" for heading in HEADINGS))
    for name in names or best:
        found = plan(benchmark(name)).estimate
        print("  ".join(f"{cell:>9}" for cell in row(name, found, best[name])))
        for part, share in (found.cycles_by_part or {}).items():
            print(f"{share:11.1%} {part}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
