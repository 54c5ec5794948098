"""What reward costs: gold reward and pretraining perplexity of SFT, best of 16, PPO and PPO-ptx, embedded corpus.

The quickstart's pipeline with a second PPO that mixes no pretraining text in, all else equal. Gold reward is the known
one that the simulated labeler judges by, over the same validation prompts; perplexity is on the validation text that
pretraining is judged by. Best of n is no policy of its own: its text is SFT's.

    python experiments/benchmarks/ptx.py [--workdir runs/ptx] [--iterations 40] [--seeds 3]

Seeds are of both kinds of PPO: of their samples, the order of prompts and the text mixed in. What comes before is the
same for all. Finished stages are not run again; a copy of a finished runs/quickstart as the workdir saves all but the
PPOs that the quickstart does not have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import lmjax
from lmjax.data.loader import validation_batches
from lmjax.data.write_shards import open_shards
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import added_up
from lmjax.settings import PPO, DataSettings, Pipeline, SourceSettings
from lmjax.settings.recipe_files import load_recipe
from lmjax.tokenizers.tokenizer import tokenizer_fingerprint
from lmjax.training.record import read_metrics
from lmjax.training.step import make_eval_step

ROWS = DataSettings(sequence_length=128, batch_size=16)  # as in pretraining's own evaluation


def names(kind: str, seeds: int) -> list[str]:
    """The stages of a kind of PPO, "ppo" or "ppo-plain", one for each seed."""
    return [kind if seed == 0 else f"{kind}-{seed}" for seed in range(seeds)]


def pipeline(iterations: int, seeds: int) -> Pipeline:
    """The quickstart's, whose PPO mixes text in, and behind it a plain PPO, for every seed."""
    *before, ppo = load_recipe(str(Path(__file__).parents[1] / "quickstart.py")).stages
    assert isinstance(ppo, PPO)
    plain = dataclasses.replace(ppo, mix=(), ppo=dataclasses.replace(ppo.ppo, ptx_coefficient=0.0))
    stages = [
        dataclasses.replace(
            stage,
            name=name,
            train=dataclasses.replace(stage.train, steps=iterations, seed=seed),
            dialogue=dataclasses.replace(stage.dialogue, seed=seed),
        )
        for kind, stage in (("ppo", ppo), ("ppo-plain", plain))
        for seed, name in enumerate(names(kind, seeds))
    ]
    return Pipeline("ptx", (*before, *stages))


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


def evaluations(folder: Path, stage: str) -> list[dict[str, Any]]:
    """What a PPO stage's evaluations told, the first of them before the first iteration."""
    return [line for line in read_metrics(folder / stage) if "validation_gold" in line]


def spread(values: Sequence[float]) -> str:
    """Mean and, of more than one value, sample deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ptx"))
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = options.workdir
    if lmjax.run(pipeline(options.iterations, options.seeds), folder).exit_code:
        raise SystemExit("stopped; the same command resumes")
    best = json.loads((folder / "best-of" / "summary.json").read_text())["best_of"][-1]
    before = evaluations(folder, "ppo")[0]["validation_gold"]
    sft = spread([perplexity(folder, "sft")])
    rows = [
        ("pretrained", "", "", spread([perplexity(folder, "pretrain")])),
        ("SFT", spread([before]), "0", sft),
        (f"best of {best['n']}", spread([best["gold"]]), spread([best["kl"]]), sft),
    ]
    for label, kind in (("PPO", "ppo-plain"), ("PPO-ptx", "ppo")):
        stages = names(kind, options.seeds)
        last = [evaluations(folder, stage)[-1] for stage in stages]
        cells = [spread([line[name] for line in last]) for name in ("validation_gold", "validation_kl")]
        rows.append((label, *cells, spread([perplexity(folder, stage) for stage in stages])))
    for name, *cells in (("", "gold reward", "nats of KL", "perplexity"), *rows):
        print(f"{name:12} " + " ".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
