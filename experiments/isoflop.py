"""IsoFLOP profiles on the embedded corpus, bytes as tokens: the smallest sweep that shows a scaling law, on a CPU.

`lmjax sweep isoflop:rates` searches the peak rate of three sizes, with two seeds; `lmjax sweep isoflop:profiles` trains
five sizes for each of four budgets, 1e11 to 3e12 FLOPs with attention and head, about 20 tokens per parameter at the
middle one. `RATE`, which falls as 1 / width, is a guess until the first sweep has told the best. Then `lmjax report`,
`lmjax fit` and `lmjax forecast` read runs/isoflop-profiles/table.jsonl.
"""

from typing import Literal

from lmjax.scaling.ladder import dial, grid, isoflop, search
from lmjax.scaling.rules import inverse_width
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    Sweep,
)

BUDGETS = (1e11, 3e11, 1e12, 3e12)
RATE, BASE_WIDTH = 1e-2, 64
ROWS, LENGTH = 8, 256


def recipe(size: Literal["rates", "profiles"] = "profiles") -> Sweep:
    base = Pretrain(
        data=DataSettings(sequence_length=LENGTH),
        model=ModelSettings(layers=2, width=32, context=LENGTH, attention=AttentionSettings(heads=2)),
        optimizer=OptimizerSettings(schedule=ScheduleSettings(final=0.1)),
        evaluation=EvaluationSettings(every=10**6),
        checkpoint=CheckpointSettings(every=10**6, keep_last=1),
        log=LogSettings(every=50, tensorboard=False),
    )
    models = [dial(base.model, layers, aspect=16) for layers in range(1, 13)]
    rule = inverse_width(RATE, BASE_WIDTH, ROWS, warmup=0.05)
    if size == "rates":
        runs = grid(base, [models[1], models[3], models[5]], [600_000], rule)
        rates = [2.0**power for power in range(-9, -4)]
        return Sweep("isoflop-rates", search(runs, learning_rates=rates, seeds=(0, 1)))
    return Sweep("isoflop-profiles", isoflop(base, BUDGETS, models, rule))
