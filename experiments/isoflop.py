"""IsoFLOP profiles with bytes as tokens, on a CPU: five sizes at each of several budgets.

`isoflop:quick` needs nothing but the embedded corpus: 1e11 to 3e12 FLOPs, minutes on two cores. The measured sweep also
reads the texts of ../shared/data, together 7.8 MB, and holds out the last 4% of each: `isoflop:rates` searches the peak
rate of two or three sizes at each of three budgets, `isoflop:profiles` trains 1e11 to 3e13 FLOPs at the rates of
`rate_rule`, and `isoflop:seeds` the best size of each budget twice more, into the same table. What came out, and the
run that was forecast from it, is in experiments/results/isoflop/.
"""

import dataclasses
import math
from typing import Literal

from lmjax.scaling.ladder import dial, isoflop, search
from lmjax.scaling.rules import Hyperparameters, Trained
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    PositionSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    Sweep,
)

TEXTS = "../shared/data"
BUDGETS = (1e11, 3e11, 1e12, 3e12, 1e13, 3e13)
# the peak rate is RATE x (parameters / 100,000)^RATE_POWER: least squares through the seven minima of parabolas in
# log rate that `rates` gave, 0.0055 to 0.0104
RATE, RATE_POWER = 0.0081, -0.095
RATIO = 50.0  # tokens per parameter in the middle of each budget; `rates` was run around 20
ROWS, LENGTH, WARMUP = 4, 256, 0.05
BEST = (  # the run of least loss of each budget, as `profiles` has told
    *("c1e11_n21k_d580k", "c3e11_n33.7k_d1.01m", "c1e12_n69k_d1.81m", "c3e12_n97.2k_d3.78m"),
    *("c1e13_n167k_d7.82m", "c3e13_n410k_d9.85m"),
)


def recipe(size: Literal["quick", "rates", "profiles", "seeds"] = "quick") -> Sweep:
    models = ladder()
    if size == "quick":
        return Sweep("isoflop-quick", isoflop(pretraining([], []), BUDGETS[:4], models, rate_rule, ratio=RATIO))
    base = pretraining(texts(0.0, 0.96), texts(0.96, 1.0))
    if size == "rates":
        small = isoflop(base, BUDGETS[:1], models, rate_rule, sizes=3)
        larger = isoflop(base, BUDGETS[2:4], models, rate_rule, sizes=2)
        rates = [2.0**-power for power in (8, 7, 6, 5)]
        return Sweep("byte-rates", search((*small, *larger), learning_rates=rates))
    profiles = isoflop(base, BUDGETS, models, rate_rule, ratio=RATIO)
    if size == "seeds":
        profiles = search([run for run in profiles if run.name in BEST], seeds=(1, 2))
    return Sweep("byte-profiles", profiles)


def rate_rule(trained: Trained) -> Hyperparameters:
    """The power law through the best rates of `rates`."""
    size, steps = trained.counted.parameters, trained.tokens / (ROWS * LENGTH)
    rate = RATE * (size / 1e5) ** RATE_POWER
    reason = f"rate {RATE:.3g} x ({size:,} / 100,000)^{RATE_POWER:.3g} = {rate:.3g}, from isoflop:rates"
    return Hyperparameters(rate, ROWS, math.floor(WARMUP * steps), f"{reason}; {ROWS} rows, {WARMUP:.0%} of warmup")


def ladder() -> list[ModelSettings]:
    """Widths of 16 x layers, and below 80 also those of 16 x (layers + 1); weights begin at 0.7 / sqrt(width)."""
    base = ModelSettings(
        layers=1, width=16, attention=AttentionSettings(heads=1), positions=PositionSettings(kind="rotary")
    )
    wider = [dial(base, layers, aspect=16 * (layers + 1) / layers) for layers in (1, 2, 3)]
    models = [*(dial(base, layers, aspect=16) for layers in range(1, 13)), *wider]
    return [dataclasses.replace(model, init_std=round(0.7 / math.sqrt(model.width), 4)) for model in models]


def pretraining(train: list[SourceSettings], validation: list[SourceSettings]) -> Pretrain:
    """What all runs share; the embedded corpus is read beside these sources."""
    return Pretrain(
        data=DataSettings(
            train=(SourceSettings(), *train),
            validation=(SourceSettings(split="validation"), *validation),
            sequence_length=LENGTH,
        ),
        model=ModelSettings(context=LENGTH),
        optimizer=OptimizerSettings(schedule=ScheduleSettings(kind="linear", final=0.0)),
        evaluation=EvaluationSettings(every=10**6),
        checkpoint=CheckpointSettings(every=2000, keep_last=1),
        log=LogSettings(every=50, tensorboard=False),
    )


def texts(begin: float, end: float) -> list[SourceSettings]:
    """A part of every text of the folder."""
    files = ("pd_books/botchan.txt", "pd_books/inaugural.txt", "tinystories/tinystories_dev.txt")
    found = [SourceSettings(kind="text", path=f"{TEXTS}/{file}", begin=begin, end=end) for file in files]
    wiki = f"{TEXTS}/web_docs/wiki_dev.txt"
    found.append(SourceSettings(kind="text", path=wiki, documents="line", begin=begin, end=end))
    return [*found, SourceSettings(kind="jsonl", path=f"{TEXTS}/web_docs/c4_dev.jsonl", begin=begin, end=end)]
