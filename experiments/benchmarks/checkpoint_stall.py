"""How long training stalls for a checkpoint, and how long it waits for its input, in the real loop on the CPU.

    python experiments/benchmarks/checkpoint_stall.py

A GPT-2 of 6 layers, 384 wide, trains on the embedded corpus in bytes and saves every 10 steps. The stall is what the
three steps after a save, with the call of `save` before them, take longer than three others: a checkpoint is written in
the background, but not for nothing. In steps, so that the target is below 1.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

EVERY, AFTER = 10, 3  # steps between two checkpoints, and how many of them a save may slow down


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"

    import jax

    from lmjax.runs.run import run
    from lmjax.settings import (
        AttentionSettings,
        CheckpointSettings,
        DataSettings,
        EvaluationSettings,
        LogSettings,
        ModelSettings,
        Pretrain,
        TrainSettings,
    )
    from lmjax.stages import train_stage as stage

    recipe = Pretrain(
        name="checkpoint_stall",
        data=DataSettings(sequence_length=256, batch_size=12),
        model=ModelSettings(layers=6, width=384, context=256, attention=AttentionSettings(heads=6)),
        train=TrainSettings(steps=arguments.steps),
        evaluation=EvaluationSettings(every=arguments.steps, batches=1),
        checkpoint=CheckpointSettings(every=EVERY),
        log=LogSettings(every=arguments.steps),
    )
    ends: list[float] = []
    saves: list[float] = []
    fit = stage.fit

    def timed(job, state, stop):  # the loop itself, with a clock around two of its calls
        def step(state, batch):
            out = jax.block_until_ready(job.step(state, batch))
            ends.append(time.perf_counter())
            return out

        def save(*given):
            started = time.perf_counter()
            job.save(*given)
            saves.append(time.perf_counter() - started)

        return fit(dataclasses.replace(job, step=step, save=save), state, stop)

    stage.fit = timed
    with tempfile.TemporaryDirectory() as folder:
        run(recipe, folder, quiet=True)
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        waited = next(line["input_wait"] for line in lines if "input_wait" in line)

    seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]  # [i]: of step i + 1
    after = [i for i in range(len(seconds)) if (i + 1) % EVERY < AFTER and i >= EVERY - 1]
    plain = statistics.median(second for i, second in enumerate(seconds) if i not in after and i > 1)
    stalls = []
    for first in range(EVERY - 1, len(seconds) - AFTER, EVERY):
        stalls.append(sum(seconds[first : first + AFTER]) - AFTER * plain)
    numbers = {
        "step_seconds": plain,
        "save_call_seconds": statistics.median(saves[:-1]),
        "stall_steps": statistics.median(stalls) / plain,
        "input_wait": waited,
    }
    if arguments.json:
        print(json.dumps(numbers))
        return
    print(f"a step                                        {plain:>8.3f} s")
    print(f"the call that saves                           {numbers['save_call_seconds']:>8.3f} s")
    print(f"stall of a checkpoint, that and what follows  {numbers['stall_steps']:>8.2f} steps (target: below 1)")
    print(f"waiting for input                             {waited:>8.3%} of the time (target: below 1%)")


if __name__ == "__main__":
    main()
