"""Reward over-optimisation: gold and proxy over KL, for a small and a large reward model, by PPO and by best of n.

After Gao et al. 2022, "Scaling laws for reward model overoptimization". The quickstart's simulated labeler ranks
answers by a known (gold) reward with noise. Two reward models learn the same comparisons, and differ in the pretrained
model that they start from. The same SFT policy is then optimised for each by PPO, with a KL coefficient of 0 unless
told otherwise, and by taking the best of n answers. An answer that is cut off in the middle costs either of them
more than a score can give: labelers were shown it as if it had ended there, so that no reward model knows of such.

A reward model's score has no unit of its own. It is shifted and scaled so that over SFT's answers to the validation
prompts, on which neither model was trained, it has the mean and the deviation of the gold reward. So both curves begin
together, and would stay together for a reward model that is right.

    python experiments/benchmarks/overoptimisation.py [--workdir runs/overoptimisation] [--iterations 100]

Finished stages are not run again. Two charts, overoptimisation-ppo.png and overoptimisation-best-of.png, are written
into the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import print_table

import lmjax
from lmjax.files import read_json_if_there
from lmjax.report.charts import Chart, Series, write_png
from lmjax.settings import (
    PPO,
    SFT,
    AttentionSettings,
    Compare,
    KLSettings,
    ModelSettings,
    Pipeline,
    Pretrain,
    RewardModel,
)
from lmjax.settings.recipe_files import load_recipe
from lmjax.stages.compare import COMPARISONS_FILE
from lmjax.training.record import read_metrics

SIZES = {  # what the reward models start from; the policy has the large one's size
    "small": ModelSettings(layers=1, width=64, context=256, attention=AttentionSettings(heads=1)),
    "large": ModelSettings(layers=2, width=128, context=256, attention=AttentionSettings(heads=2)),
}
UNFINISHED = 5.0  # taken from the score of an answer that was cut off: the labeler was shown no such thing
EVERY = 4  # iterations between evaluations
ACROSS = "square root of KL to SFT, in nats"


class Point(NamedTuple):
    """A policy's divergence from SFT, the mean score of its answers, and their mean gold reward."""

    at: int  # iteration, or n
    kl: float
    proxy: float
    gold: float


def pipeline(iterations: int, coefficient: float) -> Pipeline:
    """The quickstart's stages with smaller models and noisier comparisons; from these on, once for each size."""
    pretrain, sft, compare, reward, best_of, ppo = load_recipe(str(Path(__file__).parents[1] / "quickstart.py")).stages
    assert isinstance(pretrain, Pretrain) and isinstance(sft, SFT) and isinstance(compare, Compare)
    assert isinstance(reward, RewardModel) and isinstance(best_of, Compare) and isinstance(ppo, PPO)
    replace = dataclasses.replace
    validation = tuple(replace(source, end=0.4) for source in ppo.dialogue.validation)
    ppo = replace(
        ppo,
        dialogue=replace(ppo.dialogue, validation=validation),
        ppo=replace(ppo.ppo, ptx_coefficient=0.0, baseline="value_head"),  # a value model would have the judge's size
        kl=KLSettings(coefficient=coefficient),
        mix=(),
        reward=replace(ppo.reward, no_eos_penalty=UNFINISHED),
        train=replace(ppo.train, steps=iterations),
        evaluation=replace(ppo.evaluation, every=EVERY),
        checkpoint=replace(ppo.checkpoint, every=iterations),
    )
    best_of = replace(
        best_of, dialogue=replace(best_of.dialogue, train=validation), answers=64, no_eos_penalty=UNFINISHED
    )
    before = [replace(pretrain, name=f"pretrain-{size}", model=model) for size, model in SIZES.items()]
    before += [replace(sft, start="pretrain-large"), replace(compare, answers=4, noise=0.4)]
    behind = []
    for size in SIZES:
        judge = f"reward-{size}"
        behind += [
            replace(reward, name=judge, start=f"pretrain-{size}", epochs=2.0),
            replace(best_of, name=f"best-of-{size}", proxy=judge),
            replace(ppo, name=f"ppo-{size}", reward=replace(ppo.reward, source=judge)),
        ]
    return Pipeline("overoptimisation", (*before, *behind))


def scale(folder: Path, size: str) -> tuple[float, float, float]:
    """What to multiply a reward model's score by and to add, so that it has gold's deviation and mean over SFT's
    answers; and its correlation with gold over those that ended."""
    lines = (folder / f"best-of-{size}" / COMPARISONS_FILE).read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    names = ("proxy", "gold", "finished")
    proxy, gold, finished = (np.concatenate([prompt[name] for prompt in prompts]) for name in names)
    factor = float(gold.std() / proxy.std())
    return factor, float(gold.mean() - factor * proxy.mean()), float(np.corrcoef(proxy[finished], gold[finished])[0, 1])


def by_ppo(folder: Path, size: str) -> list[Point]:
    """Every evaluation of a PPO."""
    lines = [line for line in read_metrics(folder / f"ppo-{size}") if "validation_gold" in line]
    names = ("step", "validation_kl", "validation_reward", "validation_gold")
    return [Point(*(line[name] for name in names)) for line in lines]


def by_best_of(folder: Path, size: str) -> list[Point]:
    found = read_json_if_there(folder / f"best-of-{size}" / "summary.json")
    assert found is not None
    return [Point(*(row[name] for name in ("n", "kl", "proxy", "gold"))) for row in found["best_of"]]


def chart(name: str, title: str, curves: dict[str, list[Point]]) -> Chart:
    """Gold solid and proxy dashed, a colour for each size, in the order of the points."""
    series: list[Series] = []
    for size, points in curves.items():
        across = np.sqrt([max(0.0, point.kl) for point in points])  # an estimate near 0 may be below it
        role: Any = "first" if size == "small" else "second"
        for kind, dashed in (("gold", False), ("proxy", True)):
            values = np.array([getattr(point, kind) for point in points])
            series.append(Series(f"{kind}, {size} reward model", across, values, role, dashed=dashed))
    return Chart(name, title, tuple(series), across=ACROSS)


def shown(points: list[Point]) -> list[Point]:
    """The first, those at 4, 8, 16, ..., where gold is highest, and the last."""
    chosen = {0, points[-1].at, max(points, key=lambda point: point.gold).at}
    chosen |= {EVERY * 2**power for power in range(20)}
    return [point for point in points if point.at in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--kl-coefficient", type=float, default=0.0)
    options = parser.parse_args()
    folder, recipe = options.workdir, pipeline(options.iterations, options.kl_coefficient)
    if lmjax.run(recipe, folder).exit_code:
        raise SystemExit("stopped; the same command resumes")
    rows: list[list[str]] = []
    curves: dict[str, dict[str, list[Point]]] = {"PPO": {}, "best of n": {}}
    for size in SIZES:
        factor, shift, correlation = scale(folder, size)
        judge = read_json_if_there(folder / f"reward-{size}" / "summary.json")
        assert judge is not None
        print(
            f"{size} reward model: {judge['parameters']:,} parameters, {judge['non_embedding_parameters']:,} without "
            f"embeddings; accuracy {judge['validation_accuracy']:.3f}, correlation {correlation:.3f}"
        )
        for method, points in (("PPO", by_ppo(folder, size)), ("best of n", by_best_of(folder, size))):
            scaled = [point._replace(proxy=factor * point.proxy + shift) for point in points]
            curves[method][size] = scaled
            for point in shown(scaled) if method == "PPO" else scaled:
                numbers = (point.kl, point.proxy, point.gold, point.proxy - point.gold)
                rows.append([f"{method}, {size}", f"{point.at}", *(f"{number:.3f}" for number in numbers)])
    print_table(("", "iteration or n", "KL, nats", "proxy", "gold", "proxy - gold"), rows)
    for name, title, method in (("ppo", "PPO", "PPO"), ("best-of", "best of n", "best of n")):
        drawn = chart(f"overoptimisation-{name}", f"Gold and proxy reward by {title}", curves[method])
        print(write_png(drawn, folder, 0))


if __name__ == "__main__":
    main()
