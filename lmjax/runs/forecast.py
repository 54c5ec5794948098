"""The run that a forecast speaks of: its recipe, from a run of the sweep, and what it takes of a slice.

In: a forecast, the sweep's rows and a pretraining recipe that gives data, tokenizer and the shape's proportions. Out:
the recipe of the compute-optimal run, laid out by `lmjax plan --auto` where a slice is named, and its chip-hours.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lmjax.errors import UserError
from lmjax.model.flops import Count
from lmjax.plan.cache import Cache
from lmjax.plan.planner import planned_recipe
from lmjax.plan.search import Watch, search
from lmjax.run_files import RECIPE_FILE, RUNS
from lmjax.scaling.bootstrap import Interval
from lmjax.scaling.forecast import Forecast
from lmjax.scaling.ladder import counted_in, dial, run_name
from lmjax.scaling.rules import Rule, Trained
from lmjax.scaling.sweep_table import DONE, Row
from lmjax.settings import ModelSettings, Pretrain
from lmjax.settings.recipe_files import read_recipe

MOST_LAYERS = 512


@dataclass(frozen=True)
class Slices:
    """What the run takes of a slice: the layout that was chosen, seconds of a step, hours, and chips x hours."""

    topology: str
    layout: str
    step_seconds: float
    hours: float
    chip_hours: float


@dataclass(frozen=True)
class Design:
    """The recipe of a forecast's run, its exact size, the arithmetic of rate and batch, and its time on a slice.

    `loss`, with its interval, is that of this size: the optimum's lies between two sizes of the dial.
    """

    recipe: Pretrain
    counted: Count
    tokens: int
    loss: float
    interval: Interval | None
    reason: str
    slices: Slices | None = None


def base_of(rows: dict[str, Row], table: Path) -> Pretrain:
    """The recipe of the sweep's largest finished run, from its folder beside the table. Raises UserError."""
    done = [row for row in rows.values() if row.get("status") == DONE]
    for row in sorted(done, key=lambda row: -row["parameters"]):
        kept = table.parent / RUNS / row["name"] / RECIPE_FILE
        if kept.exists():
            return cast(Pretrain, read_recipe(kept))
    raise UserError(f"{table}: no run's recipe is in {table.parent / RUNS}; give --base with a pretraining recipe")


def design(found: Forecast, base: Pretrain, rule: Rule) -> Design:
    """The recipe nearest to the forecast's parameters on the proportions of `base`, for the tokens of its budget."""

    def away(model: ModelSettings) -> float:
        return abs(math.log(counted_in(base, model).parameters / found.params))

    aspect = max(1, round(base.model.width / base.model.layers))
    model = min((dial(base.model, layers, aspect=aspect) for layers in range(1, MOST_LAYERS + 1)), key=away)
    length, counted = base.data.sequence_length, counted_in(base, model)
    bought = found.law.counting.tokens(found.flops, counted.parameters)
    chosen = rule(Trained(model, counted, bought, length))
    steps = max(1, round(bought / (chosen.batch_size * length)))
    tokens = steps * chosen.batch_size * length
    schedule = dataclasses.replace(base.optimizer.schedule, warmup=chosen.warmup)
    rate = float(f"{chosen.learning_rate:.4g}")
    optimizer = dataclasses.replace(base.optimizer, learning_rate=rate, schedule=schedule)
    recipe = dataclasses.replace(
        base,
        name=run_name(found.flops, counted.parameters, tokens),
        model=model,
        data=dataclasses.replace(base.data, batch_size=chosen.batch_size, ramp_from=None, ramp_tokens=0),
        optimizer=optimizer,
        train=dataclasses.replace(base.train, steps=steps, microbatches=1),
        checkpoint=dataclasses.replace(base.checkpoint, at=()),
    )
    return Design(recipe, counted, tokens, *found.law.loss(counted.parameters, tokens), chosen.reason)


def on_slice(planned: Design, topology: str, limit: int, watch: Watch, say: Any) -> Design:
    """The design with the mesh, microbatches and remat policy that are quickest on the slice, and its chip-hours.

    Raises UserError where nothing fits the slice, or where it is unknown.
    """
    found = search(planned_recipe(planned.recipe, topology), None, limit, cache=Cache(say=say), watch=watch)
    if not found.ranked:
        raise UserError(f"--topology {topology}: no layout of {planned.recipe.name} fits; name a larger slice")
    best = found.ranked[0]
    hours = best.seconds * planned.recipe.train.steps / 3600
    recipe = best.candidate.applied(planned.recipe)
    plan = dataclasses.replace(recipe.plan, topology=topology)
    slices = Slices(topology, best.candidate.text, best.seconds, hours, hours * found.where.chips)
    return dataclasses.replace(planned, recipe=dataclasses.replace(recipe, plan=plan), slices=slices)
