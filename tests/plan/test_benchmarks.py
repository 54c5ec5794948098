"""The four recipes that are held against MaxText: what they are, and what the compiler says of their steps."""

import json
import runpy
from pathlib import Path

import pytest

from lmjax.model.count import count
from lmjax.plan.planner import plan
from lmjax.plan.topology import GIB, find_slice
from lmjax.recipe import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
MAXTEXT = runpy.run_path(str(BENCHMARKS / "plan_against_maxtext.py"))["MAXTEXT"]


def recipe_of(name):
    return load_recipe(str(BENCHMARKS / f"plan_{name}.py"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2_124m", 124e6), ("gpt3_6b", 5.6e9), ("gpt3_22b", 22e9), ("gpt3_175b", 175e9)],
)
def test_benchmarks_say_what_they_are(name, parameters):
    recipe = recipe_of(name)
    assert count(recipe.model).parameters == pytest.approx(parameters, rel=0.02)
    assert recipe.optimizer.state_dtype == "float32" and recipe.optimizer.clip_norm == 1.0
    where = find_slice(recipe.plan.topology)
    tokens = recipe.data.batch_size * recipe.data.sequence_length / where.devices
    assert tokens == (16 * 1024 if name == "gpt2_124m" else 4096)


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize(
    ("name", "cycles", "collectives"),
    [
        pytest.param("gpt2_124m", 0.75, 1.01, marks=pytest.mark.slow),
        ("gpt3_6b", 0.90, 1.0),
        pytest.param("gpt3_22b", 0.90, 1.0, marks=pytest.mark.slow),
        pytest.param("gpt3_175b", 0.90, 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_fits_and_takes_fewer_cycles_than_maxtext_and_no_more_collectives(name, cycles, collectives):
    recipe = recipe_of(name)
    found = json.loads(plan(recipe).to_json())
    assert {"peak_hbm_gib", "gcycles", "mfu", "step_seconds", "collective_gib"} <= found.keys()
    its_cycles, _, its_collectives, _ = MAXTEXT[name]
    assert found["fits"], f"{found['over_by_gib']} GiB too much"
    assert found["peak_hbm_gib"] <= find_slice(recipe.plan.topology).device_hbm / GIB
    assert found["gcycles"] <= cycles * its_cycles
    assert found["collective_gib"] <= collectives * its_collectives
    assert found["step_seconds"] > 0 and 0 < found["mfu"] < 1
