"""Runs that older code wrote are still read: the same logits and text, a start for a stage, and known to be done."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lmjax
from lmjax.settings.recipe_files import from_json
from tests.tiny import changed, sft, write_rows

OLD = sorted((Path(__file__).parents[1] / "golden").glob("run_*"))


@pytest.fixture(params=OLD, ids=[folder.name for folder in OLD])
def old(request, tmp_path):
    """A copy of a workdir that the commit in its name wrote (tests/golden/make_old_run.py), and what it computed."""
    folder = tmp_path / "old"
    shutil.copytree(request.param, folder)
    return folder, json.loads((folder / "expected.json").read_text())


def test_an_old_checkpoint_gives_the_logits_and_the_text_that_it_gave(old):
    folder, expected = old
    trained = lmjax.load(folder)
    logits = np.asarray(trained.apply(expected["tokens"]))[0, -1]
    assert trained.step == 20
    np.testing.assert_allclose(logits[: len(expected["last_logits"])], expected["last_logits"], atol=1e-5)
    assert trained.generate(expected["prompt"], max_tokens=12, temperature=0.0)[0].text == expected["greedy"]


def test_an_old_checkpoint_is_a_start_for_a_stage(old, tmp_path):
    folder, _ = old
    source = write_rows(tmp_path / "a.jsonl", [{"prompt": "Hi", "response": "Hello"}] * 8)
    stage = sft(source, start=str(folder), dialogue__validation=source, train__steps=1, epochs=None)
    summary = lmjax.run(stage, workdir=tmp_path / "sft", quiet=True).summary
    assert summary["steps"] == 1 and np.isfinite(summary["validation_loss"])


def test_an_old_run_is_done_for_a_recipe_that_leaves_open_what_now_has_another_default(old, capsys):
    folder, _ = old
    recipe = from_json((folder / "recipe.json").read_text())
    assert recipe.optimizer.schedule.warmup_from == 0.0
    now = changed(recipe, optimizer__schedule__warmup_from=None)
    assert lmjax.run(now, workdir=folder).summary["steps"] == 20
    assert f"{folder} is done." in capsys.readouterr().out
    assert from_json((folder / "recipe.json").read_text()) == recipe


def test_an_old_run_that_was_done_is_done(old, capsys):
    folder, _ = old
    before = (folder / "metrics.jsonl").read_text()
    recipe = from_json((folder / "recipe.json").read_text())
    assert lmjax.run(recipe, workdir=folder).summary["steps"] == 20
    assert f"{folder} is done." in capsys.readouterr().out and (folder / "metrics.jsonl").read_text() == before
