"""Runs that train together against the same runs one by one: seconds of a step of all, by width and rows.

    python experiments/benchmarks/runs_together.py

Eight runs of a GPT of two layers on rows of 64 bytes, with seeds and rates of their own: once as one program over all
of them (lmjax/tasks/together.py), once as eight calls of the step that `lmjax run` compiles. Both are in one process
and take turns, so that a busy machine is busy for both; the medians count. Above a ratio of 1 together is faster; the
last column is that ratio in processor time.
"""

import argparse
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from measuring import clocked, median, print_machine, print_table

from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import init_state
from lmjax.settings import AttentionSettings, DataSettings, MeshSettings, ModelSettings, Pretrain, TokenizerSettings
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import resolve
from lmjax.tasks.together import runs_together

LENGTH, VOCABULARY, STEPS = 64, 257, 100


def recipe_of(width: int, rows: int) -> Pretrain:
    heads = AttentionSettings(heads=width // 16)
    return Pretrain(
        tokenizer=TokenizerSettings(kind="byte"),
        model=ModelSettings(layers=2, width=width, context=LENGTH, attention=heads),
        data=DataSettings(sequence_length=LENGTH, batch_size=rows),
    )


def batch_of(rows: int) -> dict[str, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (rows, LENGTH + 1)).astype(np.int32)
    ones = np.ones((rows, LENGTH), np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ones.shape)
    fields = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": places, "segments": ones}
    return jax.tree.map(jnp.asarray, fields | {"weights": ones.astype(np.float32)})


def measure(width: int, rows: int, runs: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step of all runs, one by one and together."""
    recipe, batch = recipe_of(width, rows), batch_of(rows)
    mesh, resolved = make_mesh(MeshSettings(), jax.devices()[:1]), resolve(recipe)
    program = NextToken().build(resolved, mesh, STEPS)
    alone = [init_state(program.model, program.optimizer, seed, mesh) for seed in range(runs)]
    programs = runs_together(NextToken(), resolved, STEPS)
    seeds, rates = jnp.arange(runs, dtype=jnp.int32), jnp.linspace(1e-4, 1e-3, runs)
    states = programs.fresh(seeds)

    def one_by_one() -> None:
        for run in range(runs):
            alone[run], _ = program.step(alone[run], batch)
        jax.block_until_ready(alone)

    def together() -> None:
        nonlocal states
        states, _ = programs.step(states, seeds, rates, batch)
        jax.block_until_ready(states)

    for call in 2 * (one_by_one, together):  # compiles, and steps once more
        call()
    answers = [(clocked(one_by_one), clocked(together)) for _ in range(rounds)]
    one, both = zip(*answers, strict=True)
    found = {"width": width, "rows": rows, "one_by_one": median(one), "together": median(both)}
    ratio = found["one_by_one"] / found["together"]
    return found | {"ratio": ratio, "cpu_ratio": median(one, "cpu") / median(both, "cpu")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="of a batch, of 64 bytes each")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, in turns")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shapes = [(width, rows) for width in arguments.widths for rows in arguments.rows]
    found = []
    for width, rows in shapes:
        found.append(measure(width, rows, arguments.runs, arguments.rounds))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print_machine(len(os.sched_getaffinity(0)))
    milliseconds = [[f"{1e3 * row[name]:.1f}" for name in ("one_by_one", "together")] for row in found]
    ratios = [[f"{row[name]:.2f}" for name in ("ratio", "cpu_ratio")] for row in found]
    shape = [[str(row["width"]), str(row["rows"])] for row in found]
    heads = ["width", "rows", "one by one, ms", "together, ms", "ratio", "CPU ratio"]
    print_table(heads, [a + b + c for a, b, c in zip(shape, milliseconds, ratios, strict=True)])


if __name__ == "__main__":
    main()
