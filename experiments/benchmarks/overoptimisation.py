"""Reward over-optimisation: gold and proxy over KL, for a small and a large reward model, by PPO and by best of n.

After Gao et al. 2022, "Scaling laws for reward model overoptimization". The quickstart's simulated labeler ranks
answers by a known (gold) reward with noise. Two reward models learn the same comparisons, and differ in the pretrained
model that they start from. The same SFT policy is then optimised for each by PPO, with a KL coefficient of 0 unless
told otherwise, and by taking the best of n answers.

A reward model's score has no unit of its own. It is told in the gold reward's: by the straight line that fits gold to
score best, over the answers of best of n, which neither model was trained on. So both curves begin together, and their
distance is what the reward model is wrong by.

    python experiments/benchmarks/overoptimisation.py [--workdir runs/overoptimisation] [--iterations 320]

Finished stages are not run again. Two charts, overoptimisation-ppo.png and overoptimisation-best-of.png, are written
into the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import print_table

import lmjax
from lmjax.data.dialogue import Ranking
from lmjax.recipe import PPO, SFT, Compare, Pipeline, Pretrain, RewardModel, load_recipe
from lmjax.report.charts import Chart, Series, write_png
from lmjax.rlhf.reward_function import load_function
from lmjax.rlhf_settings import DialogueSourceSettings, KLSettings, RewardSettings
from lmjax.settings import AttentionSettings, ModelSettings
from lmjax.stages.compare import COMPARISONS_FILE
from lmjax.stages.score import open_scorer, scored_records
from lmjax.stages.workdir import read_json
from lmjax.training.record import read_metrics

SIZES = {  # what the reward models start from; the policy has the large one's size
    "small": ModelSettings(layers=1, width=32, context=256, attention=AttentionSettings(heads=1)),
    "large": ModelSettings(layers=2, width=128, context=256, attention=AttentionSettings(heads=2)),
}
EVERY = 10  # iterations between evaluations
ACROSS = "nats of KL to SFT"


class Point(NamedTuple):
    """A policy's divergence from SFT, the mean score of its answers, and their mean gold reward."""

    at: int  # iteration, or n
    kl: float
    proxy: float
    gold: float


def pipeline(iterations: int, coefficient: float) -> Pipeline:
    """The quickstart's stages with other sizes, fewer comparisons, and what is behind them once for each size."""
    pretrain, sft, compare, reward, best_of, ppo = load_recipe(str(Path(__file__).parents[1] / "quickstart.py")).stages
    assert isinstance(pretrain, Pretrain) and isinstance(sft, SFT) and isinstance(compare, Compare)
    assert isinstance(reward, RewardModel) and isinstance(best_of, Compare) and isinstance(ppo, PPO)
    replace = dataclasses.replace
    (validation,) = ppo.dialogue.validation
    prompts = replace(ppo.dialogue, validation=(replace(validation, end=0.4),))
    ppo = replace(
        ppo,
        dialogue=prompts,
        ppo=replace(ppo.ppo, mix_coefficient=0.0, baseline="value_head"),  # a value model would have the judge's size
        kl=KLSettings(coefficient=coefficient),
        mix=(),
        train=replace(ppo.train, steps=iterations),
        evaluation=replace(ppo.evaluation, every=EVERY),
        checkpoint=replace(ppo.checkpoint, every=iterations),
    )
    (openings,) = compare.dialogue.train
    asked = replace(compare.dialogue, train=(replace(openings, end=openings.begin + 0.03),))
    before = [replace(pretrain, name=f"pretrain-{size}", model=model) for size, model in SIZES.items()]
    before += [replace(sft, start="pretrain-large"), replace(compare, dialogue=asked, answers=4, noise=0.4)]
    behind = []
    for size in SIZES:
        judge = f"reward-{size}"
        behind += [
            replace(reward, name=judge, start=f"pretrain-{size}", epochs=4.0),
            replace(best_of, name=f"best-of-{size}", proxy=judge, answers=64),
            replace(ppo, name=f"ppo-{size}", reward=RewardSettings(source=judge, gold=ppo.reward.gold)),
        ]
    return Pipeline("overoptimisation", (*before, *behind))


def fitted(folder: Path, size: str, gold: str) -> tuple[float, float, float]:
    """Slope and intercept of gold over a reward model's score, and their correlation, over the answers of best of n."""
    recipe, start = open_scorer(folder / f"reward-{size}")
    source = DialogueSourceSettings(str(folder / f"best-of-{size}" / COMPARISONS_FILE))
    dialogue = dataclasses.replace(recipe.dialogue, most_answers=99)
    scores, golds = [], []
    for record, scores_K in scored_records(recipe, start, source, dialogue):
        assert isinstance(record, Ranking)
        scores += scores_K.tolist()
        golds += load_function(gold)([""] * len(record.answers), record.answers)
    slope, intercept = np.polyfit(scores, golds, 1)
    return float(slope), float(intercept), float(np.corrcoef(scores, golds)[0, 1])


def by_ppo(folder: Path, size: str) -> list[Point]:
    """Every evaluation of a PPO."""
    lines = [line for line in read_metrics(folder / f"ppo-{size}") if "validation_gold" in line]
    names = ("step", "validation_kl", "validation_reward", "validation_gold")
    return [Point(*(line[name] for name in names)) for line in lines]


def by_best_of(folder: Path, size: str) -> list[Point]:
    found = read_json(folder / f"best-of-{size}" / "summary.json")
    assert found is not None
    return [Point(*(row[name] for name in ("n", "kl", "proxy", "gold"))) for row in found["best_of"]]


def chart(name: str, title: str, curves: dict[str, list[Point]]) -> Chart:
    """Gold solid and proxy dashed, a colour for each size."""
    series: list[Series] = []
    for size, points in curves.items():
        points = sorted(points, key=lambda point: point.kl)
        across = np.array([point.kl for point in points])
        role: Any = "first" if size == "small" else "second"
        for kind, dashed in (("gold", False), ("proxy", True)):
            values = np.array([getattr(point, kind) for point in points])
            series.append(Series(f"{kind}, {size} reward model", across, values, role, dashed=dashed))
    return Chart(name, title, tuple(series), across=ACROSS)


def shown(points: list[Point]) -> list[Point]:
    """The first, those at 10, 20, 40, ..., where gold is highest, and the last."""
    chosen = {0, points[-1].at, max(points, key=lambda point: point.gold).at}
    chosen |= {EVERY * 2**power for power in range(20)}
    return [point for point in points if point.at in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--iterations", type=int, default=320)
    parser.add_argument("--kl-coefficient", type=float, default=0.0)
    options = parser.parse_args()
    folder, recipe = options.workdir, pipeline(options.iterations, options.kl_coefficient)
    if lmjax.run(recipe, folder).exit_code:
        raise SystemExit("stopped; the same command goes on")
    gold = next(stage.gold for stage in recipe.stages if isinstance(stage, Compare))
    rows: list[list[str]] = []
    curves: dict[str, dict[str, list[Point]]] = {"PPO": {}, "best of n": {}}
    for size in SIZES:
        slope, intercept, correlation = fitted(folder, size, gold)
        judge = read_json(folder / f"reward-{size}" / "summary.json")
        assert judge is not None
        print(
            f"{size} reward model: {judge['parameters']:,} parameters, {judge['non_embedding_parameters']:,} without "
            f"embeddings; accuracy {judge['validation_accuracy']:.3f}, correlation with gold {correlation:.3f}"
        )
        for method, points in (("PPO", by_ppo(folder, size)), ("best of n", by_best_of(folder, size))):
            scaled = [point._replace(proxy=slope * point.proxy + intercept) for point in points]
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
