"""Designs of sweeps: the runs have the budgets, tokens and names that they were asked for."""

import dataclasses

import pytest

from lmjax.errors import FieldError
from lmjax.model.flops import count
from lmjax.scaling.ladder import cooldowns, dial, grid, isoflop, run_name, search, size_text, tokens_per_parameter
from lmjax.scaling.rules import fixed, porian
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    Sweep,
    SweepRun,
    TokenizerSettings,
    TrainSettings,
)

LENGTH = 64
BASE = Pretrain(
    data=DataSettings(sequence_length=LENGTH),
    model=ModelSettings(layers=2, width=32, context=LENGTH, attention=AttentionSettings(heads=2)),
)
MODELS = [dial(BASE.model, layers, aspect=16) for layers in range(1, 9)]
RULE = fixed(1e-3, 4)


def counted(stage: Pretrain):
    return count(dataclasses.replace(stage.model, vocab_size=257), LENGTH)


def tokens(run: SweepRun) -> int:
    return run.stage.train.steps * run.stage.data.batch_size * LENGTH


def test_the_dial_keeps_the_size_of_heads_and_the_ratio_of_width_to_depth():
    shapes = [(model.layers, model.width, model.attention.heads, model.head_dim) for model in MODELS[:4]]
    assert shapes == [(1, 16, 1, 16), (2, 32, 2, 16), (3, 48, 3, 16), (4, 64, 4, 16)]
    assert dial(ModelSettings(width=768, attention=AttentionSettings(heads=12)), 12, aspect=64).width == 768


def test_isoflop_runs_cost_their_budget_within_half_a_step():
    runs = isoflop(BASE, [1e10, 4e10], MODELS, RULE, sizes=3, ratio=5)
    assert [run.budget for run in runs] == [1e10] * 3 + [4e10] * 3
    for run in runs:
        cost = counted(run.stage).flops_per_token
        assert abs(cost * tokens(run) - run.budget) <= cost * 4 * LENGTH / 2


def test_isoflop_takes_the_sizes_around_the_ratio():
    runs = isoflop(BASE, [4e10], MODELS, RULE, sizes=3, ratio=5)
    ratios = {
        model: 4e10 / count(dataclasses.replace(model, vocab_size=257), LENGTH).flops_per_token for model in MODELS
    }
    chosen = [run.stage.model for run in runs]
    rest = [model for model in MODELS if model not in chosen]

    def away(model):
        ratio = ratios[model] / count(dataclasses.replace(model, vocab_size=257)).parameters / 5
        return max(ratio, 1 / ratio)

    assert max(map(away, chosen)) <= min(map(away, rest))
    assert [model.layers for model in chosen] == sorted(model.layers for model in chosen)


def test_isoflop_counts_by_the_convention_that_is_asked_for():
    runs = isoflop(BASE, [1e10], MODELS, RULE, sizes=2, ratio=5, convention="6nd")
    for run in runs:
        cost = 6 * counted(run.stage).parameters
        assert abs(cost * tokens(run) - 1e10) <= cost * 4 * LENGTH / 2


def test_isoflop_needs_as_many_models_as_sizes():
    with pytest.raises(FieldError, match=r"models = 2: expected at least sizes = 5"):
        isoflop(BASE, [1e10], MODELS[:2], RULE)


def test_a_grid_is_every_model_on_every_number_of_tokens():
    runs = grid(BASE, MODELS[:2], [25_600, 51_200], RULE)
    assert [(run.stage.model.layers, tokens(run)) for run in runs] == [
        (1, 25_600),
        (1, 51_200),
        (2, 25_600),
        (2, 51_200),
    ]


def test_lengths_in_tokens_per_parameter():
    runs = tokens_per_parameter(BASE, MODELS[:2], [2, 8], RULE)
    found = [tokens(run) / counted(run.stage).parameters for run in runs]
    assert found == pytest.approx([2, 8, 2, 8], rel=0.02)


def test_names_say_flops_parameters_and_tokens():
    assert run_name(1e13, 300_000, 5e6) == "c1e13_n300k_d5m"
    assert run_name(3.16e21, 1_558_000_000, 3.3e11) == "c3.16e21_n1.56b_d330b"
    assert [size_text(value) for value in (999, 999.6e3, 12_345, 2e12)] == ["999", "1m", "12.3k", "2t"]


def test_a_ladder_of_five_doublings_costs_1_2_of_its_longest_run():
    runs = cooldowns(BASE, MODELS[:1], [2**power * 25_600 for power in range(5)], RULE)
    longest = runs[0].stage.train.steps
    own = [run.stage.train.steps - (run.cooldown_step if run.trunk else 0) for run in runs]
    assert sum(own) / longest == pytest.approx(1 + 0.2 * (1 / 2 + 1 / 4 + 1 / 8 + 1 / 16), abs=0.002)
    assert sum(run.stage.train.steps for run in runs) / longest == pytest.approx(1.9375)


def test_cooldowns_differ_from_their_trunk_in_their_end_alone():
    runs = cooldowns(BASE, MODELS[:2], [102_400, 25_600, 51_200], RULE)
    trunk, *others = runs[:3]
    assert [run.trunk for run in runs[:3]] == ["", trunk.name, trunk.name]
    assert trunk.stage.checkpoint.at == (80, 160)
    assert [run.cooldown_step for run in others] == [80, 160]
    assert {run.stage.optimizer for run in runs[:3]} == {trunk.stage.optimizer}
    assert trunk.stage.optimizer.schedule.stable == pytest.approx(0.8)
    Sweep("ladder", runs)  # accepts them


def test_the_trunk_has_the_batch_and_rate_of_its_shortest_run():
    base = dataclasses.replace(BASE, data=DataSettings(sequence_length=LENGTH))
    runs = cooldowns(base, MODELS[2:3], [25_600, 1_638_400], porian)
    assert len({(run.stage.data.batch_size, run.stage.optimizer.learning_rate) for run in runs}) == 1


def test_a_search_keeps_tokens_and_the_fraction_of_warmup():
    runs = grid(BASE, MODELS[:1], [51_200], fixed(1e-3, 4, warmup=0.1))
    found = search(runs, learning_rates=(1e-3, 2e-3), batch_sizes=(2, 8), seeds=(0, 1))
    assert len(found) == len({run.name for run in found}) == 8
    assert found[0].name == f"{runs[0].name}_b2_lr0.001_s0"
    assert {tokens(run) for run in found} == {51_200}
    warmups = {run.stage.data.batch_size: run.stage.optimizer.schedule.warmup for run in found}
    assert warmups == {2: 40, 8: 10}


def test_the_vocabulary_has_to_be_known():
    base = dataclasses.replace(BASE, tokenizer=TokenizerSettings(kind="bpe", vocab_size=512))
    known = grid(base, MODELS[:1], [25_600], RULE)
    assert f"n{size_text(count(dataclasses.replace(MODELS[0], vocab_size=512)).parameters)}_" in known[0].name
    unknown = dataclasses.replace(BASE, tokenizer=TokenizerSettings(kind="bpe", path="/absent"))
    with pytest.raises(FieldError, match=r"model.vocab_size = None: expected a number of rows"):
        grid(unknown, MODELS[:1], [25_600], RULE)


def wsd(name: str, steps: int, trunk: str = "", **changes) -> SweepRun:
    schedule = changes.pop("schedule", ScheduleSettings(kind="wsd", warmup=2))
    parts = {"optimizer": OptimizerSettings(schedule=schedule), "checkpoint": CheckpointSettings(at=(16,))} | changes
    return SweepRun(dataclasses.replace(BASE, name=name, train=TrainSettings(steps=steps), **parts), trunk)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (wsd("b", 20, "absent"), r"b.trunk = 'absent': expected an earlier run that has no trunk itself"),
        (wsd("b", 200, "a"), r"b.train.steps = 200: expected a cooldown between its warmup and step 80"),
        (wsd("b", 2, "a"), r"b.train.steps = 2: expected a cooldown between its warmup"),
        (wsd("b", 40, "a"), r"b.trunk = 'a': expected a trunk that keeps its checkpoint of step 32"),
        (
            wsd("b", 20, "a", data=DataSettings(sequence_length=LENGTH, batch_size=4)),
            r"b.data = .*: expected what its trunk has",
        ),
        (wsd("b", 20, "a", schedule=ScheduleSettings(kind="cosine")), r"b.optimizer.schedule = .*: expected 'wsd'"),
        (wsd("a", 20), r"runs = \['a'\]: expected runs of different names"),
    ],
)
def test_a_sweep_refuses_a_cooldown_that_its_trunk_does_not_lead_to(run, message):
    with pytest.raises(FieldError, match=message):
        Sweep("ladder", (wsd("a", 100), run))


def test_a_sweep_has_runs():
    with pytest.raises(FieldError, match=r"runs = \(\): expected at least one run"):
        Sweep("ladder", ())
