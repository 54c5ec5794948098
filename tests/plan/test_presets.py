"""The table of presets: every one has a row that fits its slice's devices, and rows that were compiled are kept."""

import importlib.util
import json
from pathlib import Path

import pytest

from lmjax.model.open_presets import OPEN_PRESETS
from lmjax.model.presets import PRESETS
from lmjax.parallel.mesh import mesh_shape
from lmjax.plan.estimate import Estimate
from lmjax.plan.planner import Plan
from lmjax.plan.slices import find_slice
from lmjax.plan.target import target_of

FILE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "plan_presets.py"
# The papers' batches, in tokens; 175B's 3.2M, which 512 chips do not divide, to 2%.
BATCHES = {
    **{"gpt1": 64 * 512, "gpt2": 512 * 1024, "bert": 256 * 128, "t5": 128 * 512},  # T5's inputs alone
    **{"0.5M": 2**19, "1M": 2**20, "2M": 2**21, "3.2M": 1536 * 2048},
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("plan_presets", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch_of(name):
    family, _, size = name.partition("_")
    if name in OPEN_PRESETS:
        return BATCHES["1M"]
    if family != "gpt3":
        return BATCHES[family]
    sizes = {"1300m": "1M", "2700m": "1M", "6700m": "2M", "13b": "2M", "175b": "3.2M"}
    return BATCHES[sizes.get(size, "0.5M")]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_row_that_its_slice_can_cut(script, name):
    recipe = script.recipe_of(script.ROWS[name])
    assert recipe.model == PRESETS[name]
    assert recipe.data.batch_size * recipe.data.sequence_length == batch_of(name)
    target_of(recipe).check(mesh_shape(recipe.mesh, find_slice(recipe.plan.topology).devices))


def planned(compiled, fails_at=None):
    def plan(recipe, say):
        if recipe.name == fails_at:
            raise KeyboardInterrupt
        compiled.append(recipe.name)
        figures = {"mesh": mesh_shape(recipe.mesh, 8), "remat": recipe.compute.remat, "rows_per_step": 64}
        figures |= {"microbatches": recipe.train.microbatches, "unrolled_layers": recipe.compute.unroll_layers}
        place = {"recipe": recipe.name, "topology": "v5e-8", "chips": 8, "devices": 8, "hbm_gib": 15.75}
        speed = {"gcycles": 0.25, "step_seconds": 0.5, "tokens_per_second": 65536.0, "mfu": 0.4, "bound_by": "links"}
        rest = {"sequence_length": 512, "parameters": 1, "fits": True, "peak_hbm_gib": 3.5}
        return Plan(Estimate(**place, **figures, **rest, **speed))

    return plan


def test_an_interrupted_table_goes_on_and_a_changed_row_is_compiled_again(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "ROWS", dict.fromkeys(("one", "two"), script.ROWS["gpt1"]))
    names = iter(["one", "two", "one", "two", "one", "two"])
    make = script.recipe_of
    monkeypatch.setattr(script, "recipe_of", lambda row: script.dataclasses.replace(make(row), name=next(names)))
    file, compiled = tmp_path / "rows.json", []
    monkeypatch.setattr(script.sys, "argv", ["plan_presets", "--cache", str(file)])
    monkeypatch.setattr(script, "plan", planned(compiled, fails_at="two"))
    with pytest.raises(KeyboardInterrupt):
        script.main()
    monkeypatch.setattr(script, "plan", planned(compiled))
    script.main()
    assert compiled == ["one", "two"]
    row = "| two | v5e-8 | fsdp 8 | none, unrolled | 32,768 | 1 | 3.5 of 15.75 | 0.25 | 0.5 | 65,536 | 40% | links |"
    assert capsys.readouterr().out.splitlines()[-1] == row
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"two": kept["two"] | {"key": "of other sources"}}))
    script.main()
    assert compiled == ["one", "two", "two"]
