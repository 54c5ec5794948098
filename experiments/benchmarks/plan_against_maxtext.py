"""The planner's estimate of lmjax's steps beside MaxText's, for the same shapes and slices: a table.

    python experiments/benchmarks/plan_against_maxtext.py [gpt2_124m gpt3_6b gpt3_22b gpt3_175b]

Each case is compiled by libtpu for its slice, which takes minutes and needs no TPU. MaxText's numbers are those of
version 0.2.5 with jax 0.12.0.1 and libtpu 0.0.52, of its best remat policy that fits, as `maxtext_step.py` printed
them: as it comes, which leaves a fusion libtpu's 16 MiB of vector memory, and with the MiB that lmjax's recipe takes
("same VMEM"), which is the comparison on equal terms. Memory and collectives are those of MaxText as it comes.
Collectives are counted by `lmjax/plan/hlo.py` in both programs: GiB of their results in a step, and GiB that a
device sends for them in rings.
"""

import sys
from pathlib import Path

from lmjax.plan.planner import plan
from lmjax.settings.recipe_files import load_recipe

HERE = Path(__file__).parent
# With --as-it-comes: Gcycles of a step, GiB of HBM at the peak, of the collectives' results, and that a device sends
MAXTEXT = {
    "gpt2_124m": (0.2895, 6.53, 0.3038, 0.5697),
    "gpt3_6b": (1.4550, 12.13, 31.13, 41.08),
    "gpt3_22b": (5.5886, 14.49, 136.5, 177.3),
    "gpt3_175b": (20.6897, 90.88, 976.2, 1300),
}
# Gcycles with the vector memory of lmjax's recipe, `xla_tpu_scoped_vmem_limit_kib`: 48, 32, 48 and 48 MiB
SAME_VECTOR_MEMORY = {"gpt2_124m": 0.2766, "gpt3_6b": 1.3705, "gpt3_22b": 5.3918, "gpt3_175b": 17.949}


def main(names: list[str]) -> None:
    print("                     MaxText's Gcycles            at the peak, GiB  collectives, GiB         sent, GiB")
    print(
        "case       Gcycles  as is  saved  same VMEM  saved     ours  MaxText     ours  MaxText     ours  MaxText"
        "   MFU  remat"
    )
    for name in names or list(MAXTEXT):
        cycles, peak, gib, sent = MAXTEXT[name]
        found = plan(load_recipe(str(HERE / f"plan_{name}.py"))).estimate
        if found.gcycles is None:
            print(f"{name:10} does not fit: {found.over_by_gib:.2f} GiB too much")
            continue
        same = SAME_VECTOR_MEMORY[name]
        saved, saved_at_same = 1 - found.gcycles / cycles, 1 - found.gcycles / same
        print(
            f"{name:9}  {found.gcycles:7.4f}  {cycles:7.4f} {saved:5.1%}  {same:7.4f}  {saved_at_same:6.1%}"
            f"  {found.peak_hbm_gib:7.2f}  {peak:7.2f}"
            f"  {found.collective_gib:7.4g}  {gib:7}  {found.collective_sent_gib:7.4g}  {sent:7}"
            f"  {found.mfu:4.0%}  {found.remat}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
