"""Designs of sweeps: which models are trained on how many tokens, and under which names.

In: a pretraining stage that all runs share, models, budgets or tokens, and a rule for rate and batch
(lmjax/scaling/rules.py). Out: the runs of a `Sweep`. A name such as `c1e13_n300k_d5m` says FLOPs, parameters, tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from lmjax.errors import require
from lmjax.model.flops import Count, count
from lmjax.notation import rounded
from lmjax.scaling.rules import Hyperparameters, Rule, Trained
from lmjax.settings import ModelSettings, Pretrain, SweepRun

Convention = Literal["attention", "6nd"]  # FLOPs as Count.flops_per_token has them, or 6 x all parameters x tokens


def dial(base: ModelSettings, layers: int, *, aspect: float = 64) -> ModelSettings:
    """`base` with this depth, a width of `aspect` x layers, and heads of the size that `base` has.

    The width is rounded to whole heads. The feed-forward layer keeps its default of 4 x width.
    """
    heads = max(1, round(layers * aspect / base.head_dim))
    attention = dataclasses.replace(base.attention, heads=heads, head_dim=base.head_dim)
    return dataclasses.replace(base, layers=layers, width=heads * base.head_dim, attention=attention)


def grid(base: Pretrain, models: Sequence[ModelSettings], tokens: Iterable[float], rule: Rule) -> tuple[SweepRun, ...]:
    """Every model on every number of tokens: Kaplan's (N, D) grid."""
    tokens = list(tokens)
    return tuple(_run(base, model, some, rule) for model in models for some in tokens)


def tokens_per_parameter(
    base: Pretrain, models: Sequence[ModelSettings], ratios: Sequence[float], rule: Rule
) -> tuple[SweepRun, ...]:
    """Every model for several lengths, each a multiple of its parameters: Chinchilla's approach 1 has four."""
    sizes = [counted_in(base, model).parameters for model in models]
    pairs = zip(models, sizes, strict=True)
    return tuple(_run(base, model, size * ratio, rule) for model, size in pairs for ratio in ratios)


def isoflop(
    base: Pretrain,
    budgets: Sequence[float],
    models: Sequence[ModelSettings],
    rule: Rule,
    *,
    sizes: int = 5,
    ratio: float = 20.0,
    convention: Convention = "attention",
) -> tuple[SweepRun, ...]:
    """For each budget in FLOPs the `sizes` models around that which reads `ratio` tokens per parameter (approach 2)."""
    require(len(models) >= sizes, "models", len(models), f"at least sizes = {sizes}", "add models, or lower sizes")
    runs = []
    for budget in budgets:
        costs = {model: _flops_per_token(base, model, convention) for model in models}
        parameters = {model: counted_in(base, model).parameters for model in models}
        away = {model: abs(math.log(budget / costs[model] / parameters[model] / ratio)) for model in models}
        chosen = sorted(sorted(models, key=lambda model: away[model])[:sizes], key=lambda model: parameters[model])
        runs += [_run(base, model, budget / costs[model], rule, budget) for model in chosen]
    return tuple(runs)


def cooldowns(
    base: Pretrain, models: Sequence[ModelSettings], tokens: Sequence[float], rule: Rule, *, cooldown: float = 0.2
) -> tuple[SweepRun, ...]:
    """Every model on every number of tokens, at the price of the longest and a cooldown for each of the others.

    The longest run of a model is the trunk: at a constant rate up to its own cooldown, the last fraction `cooldown` of
    the steps. The others leave it where theirs begin (Hu et al. 2024, MiniCPM; Hägele et al. 2024). Rate, batch and
    warmup are those of the shortest run, since the trunk has to have one of each.
    """
    schedule = dataclasses.replace(base.optimizer.schedule, kind="wsd", stable=1.0 - cooldown, decay=None)
    base = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, schedule=schedule))
    runs: list[SweepRun] = []
    for model in models:
        shortest, *_ = ordered = sorted(tokens)
        shared = rule(_trained(base, model, shortest))
        own = [_run(base, model, some, functools.partial(_given, shared)) for some in ordered]
        leaves = tuple(run.cooldown_step for run in own[:-1])
        kept = dataclasses.replace(own[-1].stage.checkpoint, at=leaves)
        trunk = dataclasses.replace(own[-1], stage=dataclasses.replace(own[-1].stage, checkpoint=kept))
        runs += [trunk, *(dataclasses.replace(run, trunk=trunk.name) for run in own[:-1])]
    return tuple(runs)


def search(
    runs: Sequence[SweepRun],
    *,
    learning_rates: Sequence[float] = (),
    batch_sizes: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> tuple[SweepRun, ...]:
    """Each run with every rate, batch and seed; empty keeps the run's own. Tokens stay, so that steps follow the batch.

    The warmup keeps its fraction of the steps.
    """
    found = []
    for run in runs:
        require(not run.trunk, "trunk", run.trunk, "a run of its own for a search", "search before the cooldowns")
        stage = run.stage
        for batch in batch_sizes or (stage.data.batch_size,):
            sized = _with_batch(stage, batch)
            for rate in learning_rates or (stage.optimizer.learning_rate,):
                for seed in seeds or (stage.train.seed,):
                    parts = [(f"_b{batch}", batch_sizes), (f"_lr{rate:.3g}", learning_rates), (f"_s{seed}", seeds)]
                    name = run.name + "".join(text for text, asked in parts if asked)
                    optimizer = dataclasses.replace(sized.optimizer, learning_rate=rate)
                    train = dataclasses.replace(sized.train, seed=seed)
                    own = dataclasses.replace(sized, name=name, optimizer=optimizer, train=train)
                    found.append(dataclasses.replace(run, stage=own))
    return tuple(found)


def size_text(value: float) -> str:
    """A number as a run's name has it: 5.2e6 is "5.2m"."""
    return rounded(value).lower()


def run_name(flops: float, parameters: int, tokens: float) -> str:
    """`c1e13_n300k_d5m`."""
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"c{float(mantissa):g}e{int(exponent)}_n{size_text(parameters)}_d{size_text(tokens)}"


def _run(base: Pretrain, model: ModelSettings, tokens: float, rule: Rule, budget: float | None = None) -> SweepRun:
    """The run of a model on the whole steps that come nearest to `tokens`."""
    found, length = rule(_trained(base, model, tokens)), base.data.sequence_length
    steps = max(1, round(tokens / (found.batch_size * length)))
    counted = counted_in(base, model)
    schedule = dataclasses.replace(base.optimizer.schedule, warmup=found.warmup)
    read = steps * found.batch_size * length
    stage = dataclasses.replace(
        base,
        name=run_name(budget or counted.flops_per_token * read, counted.parameters, read),
        model=model,
        data=dataclasses.replace(base.data, batch_size=found.batch_size),
        optimizer=dataclasses.replace(base.optimizer, learning_rate=found.learning_rate, schedule=schedule),
        train=dataclasses.replace(base.train, steps=steps),
    )
    return SweepRun(stage, budget=budget, reason=found.reason)


def _given(found: Hyperparameters, _: Trained) -> Hyperparameters:
    return found


def _with_batch(stage: Pretrain, batch: int) -> Pretrain:
    old, steps = stage.data.batch_size, stage.train.steps
    new = max(1, round(steps * old / batch))
    schedule = dataclasses.replace(
        stage.optimizer.schedule, warmup=math.floor(stage.optimizer.schedule.warmup * new / steps)
    )
    return dataclasses.replace(
        stage,
        data=dataclasses.replace(stage.data, batch_size=batch),
        optimizer=dataclasses.replace(stage.optimizer, schedule=schedule),
        train=dataclasses.replace(stage.train, steps=new),
    )


def _trained(base: Pretrain, model: ModelSettings, tokens: float) -> Trained:
    return Trained(model, counted_in(base, model), tokens, base.data.sequence_length)


def _flops_per_token(base: Pretrain, model: ModelSettings, convention: Convention) -> int:
    counted = counted_in(base, model)
    return counted.flops_per_token if convention == "attention" else counted.flops_per_token_6n


def counted_in(base: Pretrain, model: ModelSettings) -> Count:
    """The counts of the model with the tokenizer and the rows of `base`.

    Raises FieldError where neither the model nor the tokenizer's settings say how large the vocabulary is.
    """
    vocabulary = model.vocab_size or base.tokenizer.planned_vocab_size
    return count(dataclasses.replace(model, vocab_size=vocabulary), base.data.sequence_length)
