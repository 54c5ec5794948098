"""The slice-hours of a sweep: one compilation for each shape and batch, and only the steps that a run takes itself."""

import dataclasses
import json

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.plan.cache import Cache, Result
from lmjax.plan.estimate import Estimate
from lmjax.plan.planner import plan
from lmjax.runs import slice_hours as module
from lmjax.runs.slice_hours import SlicePlanner, own_steps
from lmjax.runs.sweep_plan import planned, shown_on, totals
from lmjax.runs.sweep_units import digest
from lmjax.scaling.ladder import cooldowns, grid, search
from lmjax.scaling.rules import fixed
from lmjax.scaling.sweep_table import SweepTable
from lmjax.settings import AttentionSettings, DataSettings, ModelSettings, Pretrain, Sweep, SweepRun, TrainSettings

MODEL = ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2))
BASE = Pretrain(data=DataSettings(sequence_length=16, batch_size=4), model=MODEL)
RULE = fixed(1e-2, 4, warmup=0.2)
WIDE = dataclasses.replace(MODEL, width=32)


@pytest.fixture
def compiled(monkeypatch):
    """The recipes that are compiled; a step takes an hour for each row, or gives what `results` holds for its width."""
    recipes, results = [], {}

    def compiling(recipe, where, cache):
        recipes.append(recipe)
        rows = recipe.data.batch_size
        told = Estimate(
            *(recipe.name, where.name, where.chips, where.devices, {"data": where.devices}, "none", rows, 16, 1000),
            *(True, 15.75, 3.5),
            step_seconds=3600.0 * rows,
        )
        result = results.get(recipe.model.width, Result(told))
        cache.put(recipe, where.name, result)
        return result

    monkeypatch.setattr(module, "slice_devices", lambda where: [])
    monkeypatch.setattr(module, "compiled", compiling)
    compiling.recipes, compiling.results = recipes, results
    return compiling


def planner(folder, said=None):
    return SlicePlanner("v5e-4", Cache(folder), (said if said is not None else []).append)


def ramped(steps):
    data = DataSettings(sequence_length=16, batch_size=8, ramp_from=2, ramp_tokens=160, ramp_sizes=3)
    return SweepRun(dataclasses.replace(BASE, name="ramped", data=data, train=TrainSettings(steps=steps)))


def test_seeds_and_rates_share_one_compilation_and_shapes_and_batches_do_not(tmp_path, compiled):
    runs = search(grid(BASE, [MODEL], [640], RULE), learning_rates=(1e-2, 1e-3), seeds=(0, 1), batch_sizes=(4, 8))
    runs += grid(BASE, [WIDE], [640, 1280], RULE)
    said = []
    of_slice = planner(tmp_path, said)
    seconds = [of_slice.time_of(run).seconds for run in runs]
    assert [(recipe.model.width, recipe.data.batch_size) for recipe in compiled.recipes] == [(16, 4), (16, 8), (32, 4)]
    assert len(said) == 3 and said[0].endswith(", 4 rows, for 4 chips, v5e-4")
    assert seconds == [3600 * 40.0] * 4 + [3600 * 40.0] * 4 + [3600 * 40.0, 3600 * 80.0]
    assert [planner(tmp_path).time_of(run).seconds for run in runs] == seconds
    assert len(compiled.recipes) == 3  # the second planner finds all on the disk


def test_a_cooldown_counts_only_its_own_steps(tmp_path, compiled):
    trunk, branch = cooldowns(BASE, [MODEL], [640, 1280], RULE)
    assert (own_steps(trunk), own_steps(branch)) == ({4: 20}, {4: 2})
    assert planner(tmp_path).time_of(branch).seconds == 2 * 4 * 3600


def test_the_steps_of_a_ramp_are_counted_by_their_batch_size():
    # a batch size begins where its share of 160 tokens has been read: 3 x 32 of the first 80, then 64 to 160
    assert list(own_steps(ramped(20))) == [2, 4, 8]
    assert own_steps(ramped(20)) == {2: 3, 4: 1, 8: 16}
    assert own_steps(ramped(2)) == {2: 2}


def test_the_steps_of_a_ramp_take_the_seconds_of_their_batch_size(tmp_path, compiled):
    assert planner(tmp_path).time_of(ramped(20)).seconds == 3600 * (3 * 2 + 1 * 4 + 16 * 8)
    assert {recipe.data.ramp_from for recipe in compiled.recipes} == {None}


def test_the_hours_of_a_sweep_are_of_the_runs_that_its_table_lacks(tmp_path, compiled):
    sweep = Sweep("two", grid(BASE, [MODEL], [640, 1280], RULE))
    first = sweep.runs[0]
    where = planner(tmp_path).where
    found = totals(planned(sweep, tmp_path, time_of=planner(tmp_path).time_of), where)
    assert found == {"topology": "v5e-4", "chips": 4, "slice_hours": 120, "chip_hours": 480, "refused": 0}
    row = {"name": first.name, "sweep": "two", "recipe": digest(first), "status": "done"}
    SweepTable(tmp_path / "table.jsonl", print).append(row)
    found = totals(planned(sweep, tmp_path, time_of=planner(tmp_path).time_of), where)
    assert (found["slice_hours"], found["chip_hours"]) == (80, 320)


def test_a_run_that_the_slice_cannot_hold_says_why_and_is_not_counted(tmp_path, compiled):
    over = Estimate(
        *("x", "v5e-4", 4, 4, {"data": 4}, "none", 4, 16, 1000, False, 15.75, 20.0),
        over_by_gib=4.25,
    )
    compiled.results[32] = Result(over)
    compiled.results[64] = Result(refusal="data.batch_size = 4: expected a multiple of 64")
    models = [MODEL, WIDE, dataclasses.replace(MODEL, width=64)]
    sweep = Sweep("three", grid(BASE, models, [640], RULE))
    runs = planned(sweep, tmp_path, time_of=planner(tmp_path).time_of)
    assert [run["hours"] for run in runs] == [40, None, None]
    lines = shown_on(runs, planner(tmp_path).where).splitlines()
    names = [run["name"] for run in runs]
    assert f"{names[1]}: out of memory: needs 20.00 of 15.75 GiB HBM a device" in lines
    assert f"{names[2]}: data.batch_size = 4: expected a multiple of 64" in lines
    assert lines[-1].endswith(
        "FLOPs, 40 slice-hours on v5e-4, 160 chip-hours; 2 cannot run there and are not counted: "
        "of the steps alone, as the compiler estimates them"
    )


RECIPE = """
from lmjax.scaling.ladder import grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import *


def recipe():
    model = ModelSettings(layers=1, width=128, context=128, attention=AttentionSettings(heads=2))
    base = Pretrain(data=DataSettings(sequence_length=128), model=model)
    return Sweep("tiny", search(grid(base, [model], [128 * 8 * 100], fixed(1e-2, 8)), seeds=(0, 1)))
"""


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "sweep.py").write_text(RECIPE)
    return tmp_path / "sweep.py"


def test_the_command_prints_slice_hours_and_trains_nothing(tmp_path, recipe_file, compiled, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["sweep", str(recipe_file), "--workdir", str(tmp_path / "run"), "--plan", "--topology", "v5e-4"]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["slice_hours"], found["chip_hours"], found["chips"]) == (1600, 6400, 4)
    assert [run["hours"] for run in found["runs"]] == [800, 800]
    assert err.count("compiling") == 1
    assert main([*command, "--shard", "2/2"]) == 0
    assert "1 runs to run" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan"], "--topology = None: expected --plan and --topology together"),
        (["--topology", "v5e-4"], "--topology = 'v5e-4': expected --plan and --topology together"),
        (["--json"], "--json = True: expected --dry-run or --plan with it"),
        (["--plan", "--topology", "v5e-5"], "topology 'v5e-5': not a usual size"),
    ],
)
def test_what_cannot_be_planned_is_refused(recipe_file, options, message, capsys):
    assert main(["sweep", str(recipe_file), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_the_compilers_seconds_of_a_step_are_those_of_a_plan(tmp_path, recipe_file, capsys, monkeypatch, optimized):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["sweep", str(recipe_file), "--plan", "--topology", "v5e-4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("compiling") == 1
    model = ModelSettings(layers=1, width=128, context=128, attention=AttentionSettings(heads=2))
    alone = plan(Pretrain(data=DataSettings(sequence_length=128, batch_size=8), model=model), "v5e-4").estimate
    assert alone.step_seconds > 0
    assert json.loads(out)["slice_hours"] == pytest.approx(2 * 100 * alone.step_seconds / 3600)
    assert main(["sweep", str(recipe_file), "--plan", "--topology", "v5e-64"]) == 0
    assert "2 cannot run there" in capsys.readouterr().out  # 8 rows over 64 devices


def test_an_unknown_slice_is_refused(tmp_path):
    with pytest.raises(UserError, match="no TPU is called"):
        SlicePlanner("v9e-4", Cache(tmp_path), print)
