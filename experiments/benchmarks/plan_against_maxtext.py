"""The planner's estimate of lmjax's steps beside MaxText's, for the same shapes and slices: a table.

    python experiments/benchmarks/plan_against_maxtext.py [gpt2_124m gpt3_6b gpt3_22b gpt3_175b]

Each case is compiled by libtpu for its slice, which takes minutes and needs no TPU. MaxText's numbers are those of
version 0.2.5 with jax 0.12.0.1 and libtpu 0.0.52, of its best remat policy that fits.
"""

import sys
from pathlib import Path

from lmjax.plan.planner import plan
from lmjax.recipe import load_recipe

HERE = Path(__file__).parent
# Gcycles of a step, GiB of HBM at the peak
MAXTEXT = {
    "gpt2_124m": (0.2895, 6.5),
    "gpt3_6b": (1.455, 12.1),
    "gpt3_22b": (5.589, 14.5),
    "gpt3_175b": (20.69, 90.9),
}


def main(names: list[str]) -> None:
    print("case         Gcycles  MaxText  saved    peak GiB  MaxText  MFU   remat")
    for name in names or list(MAXTEXT):
        cycles, peak = MAXTEXT[name]
        found = plan(load_recipe(str(HERE / f"plan_{name}.py"))).estimate
        if found.gcycles is None or found.mfu is None:
            print(f"{name:12} does not fit: {found.over_by_gib:.2f} GiB too much")
            continue
        saved = 1 - found.gcycles / cycles
        print(
            f"{name:12} {found.gcycles:7.4f}  {cycles:7.4f}  {saved:5.1%}  {found.peak_hbm_gib:8.2f}  {peak:7.1f}"
            f"  {found.mfu:4.0%}  {found.remat}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
