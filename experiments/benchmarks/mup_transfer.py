"""Where the best learning rate is at each width, under muP and under the standard parametrisation.

    python experiments/benchmarks/mup_transfer.py

A GPT of two layers learns the bytes of the embedded corpus, at widths 32 to 256 (heads 4, ever wider), every rate of a
grid of 2x with three seeds; all runs of a width train together (lmjax/tasks/together.py). The base model is the
narrowest, so that both parametrisations agree there. Prints the mean validation loss, in nats per byte, of every rate,
and the best rate of every width. Exits with 1 unless the best rate stays within one step of the grid under muP and
moves further under the standard parametrisation.
"""

import argparse
import sys
import time

import jax.numpy as jnp
import numpy as np
from measuring import print_table

from lmjax.data.embedded_corpus import embedded_corpus
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    ModelSettings,
    MuPSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import resolve
from lmjax.tasks.together import runs_together

HEADS, LENGTH, ROWS, HELD_BATCHES = 4, 32, 8, 32


def recipe_of(width: int, base: int | None, steps: int) -> Pretrain:
    mup = MuPSettings() if base is None else MuPSettings(base, base // HEADS)
    heads = AttentionSettings(heads=HEADS)
    model = ModelSettings(layers=2, width=width, context=LENGTH, attention=heads, tied_head=False, mup=mup)
    return Pretrain(
        tokenizer=TokenizerSettings(kind="byte"),
        model=model,
        optimizer=OptimizerSettings(schedule=ScheduleSettings(warmup=steps // 10)),
        data=DataSettings(sequence_length=LENGTH, batch_size=ROWS),
        train=TrainSettings(steps=steps),
    )


def batch_of(text: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Rows from random places of a text of bytes."""
    starts = np.random.default_rng(number).integers(0, len(text) - LENGTH, ROWS)
    tokens = text[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)
    ones = np.ones((ROWS, LENGTH), np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ones.shape)
    fields = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": places, "segments": ones}
    return fields | {"weights": ones.astype(np.float32)}


def losses(recipe: Pretrain, rates: list[float], seeds: int, texts: dict[str, np.ndarray]) -> np.ndarray:
    """The validation loss of every rate [rates, seeds], all trained together."""
    steps = recipe.train.steps
    runs = runs_together(NextToken(), resolve(recipe), steps)
    run_seeds = jnp.tile(jnp.arange(seeds, dtype=jnp.int32), len(rates))
    run_rates = jnp.repeat(jnp.asarray(rates, jnp.float32), seeds)
    states = runs.fresh(run_seeds)
    for at in range(steps):
        states, _ = runs.step(states, run_seeds, run_rates, batch_of(texts["train"], at))
    held = [runs.evaluate(states.params, batch_of(texts["validation"], at))["loss"] for at in range(HELD_BATCHES)]
    mean = sum(loss.sum for loss in held) / sum(loss.weight for loss in held)
    return np.asarray(mean).reshape(len(rates), seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rates", type=int, nargs=2, default=[-12, -6], help="powers of 2, the first and the last")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    powers = list(range(arguments.rates[0], arguments.rates[1] + 1))
    texts = {
        split: np.frombuffer("\n\n".join(embedded_corpus(split)).encode(), np.uint8)
        for split in ("train", "validation")
    }
    spread = {}
    for name, base in (("muP", min(arguments.widths)), ("standard", None)):
        best, rows, began = [], [], time.perf_counter()
        for width in arguments.widths:
            recipe = recipe_of(width, base, arguments.steps)
            mean = losses(recipe, [2.0**power for power in powers], arguments.seeds, texts).mean(axis=1)
            best.append(int(np.nanargmin(mean)))
            cells = [f"{value:.3f}{'*' if place == best[-1] else ' '}" for place, value in enumerate(mean)]
            rows.append([str(width), *cells])
        spread[name] = max(best) - min(best)
        print(f"{name}: nats per byte at rates of 2^n, the mean of {arguments.seeds} seeds; * is the best")
        print_table(["width", *(f"{power} " for power in powers)], rows)
        print(f"the best rate moves by {spread[name]} steps of 2x; {time.perf_counter() - began:.0f} s\n", flush=True)
    if spread["muP"] > 1 or spread["standard"] <= 1:
        sys.exit("expected at most one step under muP, and more under the standard parametrisation")


if __name__ == "__main__":
    main()
