"""A run on a slice: what its recipe leaves open is chosen and said; what is recorded stays as it was written."""

import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.plan.slices import Slice
from lmjax.runs import run as module
from lmjax.runs.run import run
from lmjax.settings import MeshSettings, TrainSettings
from lmjax.training.record import read_metrics

pytestmark = pytest.mark.usefixtures("two_devices")

TWO_CHIPS = Slice("two chips", "v5e", (1, 2))
SAID = "on two chips: fsdp=2, 1 microbatch, remat 'none', unrolled layers"


@pytest.fixture
def on_a_slice(monkeypatch):
    monkeypatch.setattr(module, "slice_of", lambda devices: TWO_CHIPS)


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir) if "loss" in line]


def test_what_is_chosen_is_said_and_trains_the_same(tmp_path, tiny, on_a_slice, capsys, whole):
    result = run(tiny(), tmp_path / "run")
    assert SAID in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert kept["compute"]["remat"] == "auto" and kept["mesh"]["data"] is None and result.signal is None
    trained = lmjax.load(tmp_path / "run")
    assert trained.recipe.compute.unroll_layers is None
    for one, other in zip(jax.tree.leaves(trained.params), jax.tree.leaves(whole[2].params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_where_something_else_is_chosen(tmp_path, tiny, monkeypatch, capsys):
    run(tiny(train=TrainSettings(steps=4)), tmp_path)
    monkeypatch.setattr(module, "slice_of", lambda devices: TWO_CHIPS)
    run(tiny(), tmp_path, force=True)  # for there are more steps now
    said = capsys.readouterr().out
    assert SAID in said and "changed: compute" not in said and "changed: mesh" not in said
    assert len(losses(tmp_path)) == 10


def test_what_the_recipe_gives_is_run(tmp_path, tiny, on_a_slice, capsys):
    run(tiny(mesh=MeshSettings(data=2), train=TrainSettings(steps=2, microbatches=2)), tmp_path)
    assert "on two chips: data=2, 2 microbatches, " in capsys.readouterr().out
