"""What reward costs: gold reward and pretraining perplexity of SFT, best of 16, PPO and PPO-ptx, embedded corpus.

The quickstart's pipeline with a second PPO that mixes no pretraining text in, all else equal. Gold reward is the known
one that the simulated labeler judges by, over the same validation prompts; perplexity is on the validation text that
pretraining is judged by. Best of n is no policy of its own: its text is SFT's.

    python experiments/benchmarks/ptx.py [--workdir runs/ptx] [--iterations 40]

Finished stages are not run again; a copy of a finished runs/quickstart as the workdir saves all but the second PPO.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax

import lmjax
from lmjax.data.loader import validation_batches
from lmjax.data.shards import open_shards
from lmjax.data.tokenizer import tokenizer_fingerprint
from lmjax.objective.language import language_loss
from lmjax.objective.weighted import added_up
from lmjax.recipe import PPO, Pipeline, load_recipe
from lmjax.settings import DataSettings, SourceSettings
from lmjax.training.record import read_metrics
from lmjax.training.step import make_eval_step

ROWS = DataSettings(sequence_length=128, batch_size=16)  # as in pretraining's own evaluation


def pipeline(iterations: int) -> Pipeline:
    """The quickstart's, its PPO called ppo-ptx, and a plain one behind it."""
    *before, ppo = load_recipe(str(Path(__file__).parents[1] / "quickstart.py")).stages
    assert isinstance(ppo, PPO)
    train = dataclasses.replace(ppo.train, steps=iterations)
    ptx = dataclasses.replace(ppo, train=train)
    plain = dataclasses.replace(ptx, name="ppo-plain", mix=(), ppo=dataclasses.replace(ppo.ppo, mix_coefficient=0.0))
    return Pipeline("ptx", (*before, ptx, plain))


def perplexity(folder: Path, stage: str) -> float:
    """Of a stage's language model, on the validation text."""
    trained = lmjax.load(folder / stage)
    own = tokenizer_fingerprint(trained.tokenizer)
    source = SourceSettings(split="validation")
    shards = open_shards(source, trained.tokenizer, folder / "validation-tokens", fingerprint=own)
    step = jax.jit(make_eval_step(language_loss(trained.model, valid_vocab=trained.tokenizer.vocab_size)))
    batches = validation_batches([shards], ROWS, ROWS.batch_size)
    sums = added_up(step(trained.params, batch) for batch in batches)
    return math.exp(float(sums["cross_entropy"].mean()))


def gold(folder: Path, stage: str) -> tuple[float, dict[str, Any]]:
    """Before the first iteration, and all that the last evaluation told."""
    lines = [line for line in read_metrics(folder / stage) if "validation_gold" in line]
    return lines[0]["validation_gold"], lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ptx"))
    parser.add_argument("--iterations", type=int, default=40)
    options = parser.parse_args()
    folder = options.workdir
    if lmjax.run(pipeline(options.iterations), folder).exit_code:
        raise SystemExit("stopped; the same command goes on")
    best = json.loads((folder / "best-of" / "summary.json").read_text())["best_of"][-1]
    before, ptx = gold(folder, "ppo")
    _, plain = gold(folder, "ppo-plain")
    texts = {stage: perplexity(folder, stage) for stage in ("pretrain", "sft", "ppo", "ppo-plain")}
    rows = [
        ("pretrained", "", "", texts["pretrain"]),
        ("SFT", before, 0.0, texts["sft"]),
        (f"best of {best['n']}", best["gold"], best["kl"], texts["sft"]),
        ("PPO", plain["validation_gold"], plain["validation_kl"], texts["ppo-plain"]),
        ("PPO-ptx", ptx["validation_gold"], ptx["validation_kl"], texts["ppo"]),
    ]
    print(f"{'':12} {'gold reward':>12} {'nats of KL':>12} {'perplexity':>12}")
    for name, *values in rows:
        print(f"{name:12} " + " ".join(f"{value:12.3f}" if value != "" else f"{'':12}" for value in values))


if __name__ == "__main__":
    main()
