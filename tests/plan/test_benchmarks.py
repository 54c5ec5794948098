"""The four recipes that are held against MaxText: what they are, and what the compiler says of their steps."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.model.flops import count
from lmjax.parallel.chips import GIB
from lmjax.parallel.compiler_options import compiler_options
from lmjax.plan.planner import plan
from lmjax.plan.slices import find_slice
from lmjax.settings.recipe_files import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
PEER = runpy.run_path(str(BENCHMARKS / "plan_against_maxtext.py"))
MAXTEXT, SAME_VECTOR_MEMORY = PEER["MAXTEXT"], PEER["SAME_VECTOR_MEMORY"]
STEP = runpy.run_path(str(BENCHMARKS / "maxtext_step.py"))


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


@pytest.mark.parametrize("name", MAXTEXT)
def test_maxtext_is_compiled_with_the_option_that_lmjax_s_recipe_takes(name):
    """A peer is compared at its best options; what it takes with libtpu's own default stands beside that."""
    kind = "TPU v5" if name == "gpt3_175b" else "TPU v5 lite"
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind=kind)]))
    (option,) = compiler_options(mesh, recipe_of(name).compute).items()
    assert STEP["settings_of"](name)[-1] == "compile_xla_flags=--{}={}".format(*option)
    assert not any("xla_flags" in each for each in STEP["settings_of"](name, as_it_comes=True))
    assert SAME_VECTOR_MEMORY[name] < MAXTEXT[name][0]


@pytest.mark.parametrize(("options", "flags", "file"), [([], 1, None), (["--as-it-comes"], 0, "x"), ([], 1, "x")])
def test_maxtext_s_step_takes_or_leaves_the_option(monkeypatch, tmp_path, capsys, options, flags, file):
    text = """HloModule m
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2] parameter(0)
  ROOT %b = f32[2] negate(%a), backend_config={"estimated_cycles":"3000000"}
}
"""
    memory = SimpleNamespace(peak_memory_in_bytes=GIB)
    compiled = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: memory)
    asked = []
    main = STEP["main"]
    monkeypatch.setitem(main.__globals__, "compiled_step", lambda settings: asked.append(settings) or compiled)
    changes = [str(tmp_path / file), "remat_policy=full"] if file else []
    main("gpt3_6b", *options, *changes)
    (settings,) = asked
    given = ("compile_xla_flags=--xla_tpu_scoped_vmem_limit_kib=32768",) * flags + tuple(changes[1:])
    assert settings == STEP["CASES"]["gpt3_6b"] + given
    printed = json.loads(capsys.readouterr().out)
    assert printed["gcycles"] == 0.003 and printed["settings"] == list(given)
    assert not file or (tmp_path / file).read_text() == text


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_the_pages_print_both_of_maxtext_s_columns_and_what_follows_from_them(page):
    lines = (BENCHMARKS.parents[1] / page).read_text(encoding="utf-8").splitlines()
    for name, same in SAME_VECTOR_MEMORY.items():
        row = next(line for line in lines if line.startswith("| `") and name in line and str(same) in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        ours, usual, saved, vector_memory, its, saved_at_same = cells[-8:-2] if page == "README.md" else cells[1:7]
        found = float(ours.split()[0])
        assert float(usual) == pytest.approx(MAXTEXT[name][0], rel=5e-4)
        assert float(its) == pytest.approx(same, rel=5e-4)
        assert vector_memory == f"{STEP['VECTOR_MEMORY'][name]} MiB"
        assert float(saved.strip("%")) == pytest.approx(100 * (1 - found / MAXTEXT[name][0]), abs=0.06)
        assert float(saved_at_same.strip("%")) == pytest.approx(100 * (1 - found / same), abs=0.06)


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize(
    ("name", "cycles", "at_same", "collectives"),
    [
        ("gpt2_124m", 0.75, 0.64, 1.01),
        ("gpt3_6b", 0.90, 0.91, 1.0),
        ("gpt3_22b", 0.90, 0.94, 1.0),
        ("gpt3_175b", 0.90, 1.035, 1.0),
    ],
)
def test_a_benchmark_fits_and_takes_no_more_cycles_and_collectives_beside_maxtext(name, cycles, at_same, collectives):
    recipe = recipe_of(name)
    found = json.loads(plan(recipe).to_json())
    assert {"peak_hbm_gib", "gcycles", "mfu", "step_seconds", "collective_gib"} <= found.keys()
    its_cycles, _, its_collectives, _ = MAXTEXT[name]
    assert found["fits"], f"{found['over_by_gib']} GiB too much"
    assert found["peak_hbm_gib"] <= find_slice(recipe.plan.topology).device_hbm / GIB
    assert found["gcycles"] <= cycles * its_cycles
    assert found["gcycles"] <= at_same * SAME_VECTOR_MEMORY[name]
    assert found["collective_gib"] <= collectives * its_collectives
    assert found["step_seconds"] > 0 and 0 < found["mfu"] < 1


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize(
    ("name", "cycles", "sent"),
    [("llama2_7b", 0.7602, 48.0), ("gpt3_13b", 2.7223, 94.8)],
)
def test_a_step_takes_no_more_cycles_than_the_page_says(name, cycles, sent):
    found = plan(recipe_of(name)).estimate
    assert found.fits and found.gcycles <= 1.01 * cycles and found.collective_sent_gib <= 1.01 * sent
