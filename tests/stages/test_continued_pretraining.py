"""Pretraining that is initialised from a checkpoint: its weights, tokenizer and shape, and a fresh optimizer."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.errors import UserError
from lmjax.plan.target import target_of
from lmjax.runs.workdir import claim
from lmjax.settings import SFT, AttentionSettings, ModelSettings, Pipeline, TokenizerSettings
from lmjax.settings.recipe_files import from_json
from tests import tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "one.txt").write_text("one two three four five " * 60)
    (folder / "two.txt").write_text("six seven eight nine ten " * 60)
    return folder


def recipe_of(folder, file, **changes):
    constant = {"optimizer__schedule__kind": "constant", "train__steps": 4}
    tokenizer = TokenizerSettings(kind="bpe", vocab_size=270)
    return tiny.pretrain(
        tiny.text(folder / file), **({"tokenizer": tokenizer, "name": "pretrain"} | constant | changes)
    )


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """A trained run."""
    folder = tmp_path_factory.mktemp("base") / "base"
    lmjax.run(recipe_of(text, "one.txt", name="base"), folder, quiet=True)
    return folder


def further(text, base, **changes):
    other = ModelSettings(layers=2, width=8, context=8, attention=AttentionSettings(heads=1))
    changes = {"name": "further", "start": str(base), "model": other, "tokenizer": TokenizerSettings()} | changes
    return recipe_of(text, "two.txt", **changes)


def test_it_begins_with_the_weights_tokenizer_and_shape_of_its_start_and_a_fresh_optimizer(
    text, base, tmp_path, capsys
):
    still = {"optimizer__learning_rate": 1e-30, "optimizer__weight_decay": 0.0}
    lmjax.run(further(text, base, **still, train__steps=1), tmp_path / "further")
    assert f"initialised from {base}: its tokenizer and its model" in capsys.readouterr().out
    before, after = lmjax.load(base), lmjax.load(tmp_path / "further")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)  # a rate of 1e-30 moves nothing
    assert after.step == 1 and after.tokenizer.encode("one two") == before.tokenizer.encode("one two")
    written = find_checkpoint(tmp_path / "further").extras()
    recipe = from_json(written["recipe"])
    assert (recipe.start, recipe.model.layers, recipe.model.width) == (str(base), 1, 16)
    lines = [json.loads(line) for line in (tmp_path / "further" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1]


def test_it_goes_on_learning_and_resumes_bit_for_bit(text, base, tmp_path):
    lmjax.run(further(text, base, train__steps=3), tmp_path / "parts", quiet=True)
    lmjax.run(further(text, base, train__steps=6), tmp_path / "parts", quiet=True)
    lmjax.run(further(text, base, train__steps=6), tmp_path / "whole", quiet=True)
    parts, whole = lmjax.load(tmp_path / "parts"), lmjax.load(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    numbers = json.loads((tmp_path / "whole" / "summary.json").read_text())
    scratch = lmjax.run(recipe_of(text, "two.txt", train__steps=1), tmp_path / "scratch", quiet=True)
    assert numbers["validation_loss"] < scratch.summary["validation_loss"] - 0.5


def test_a_stage_of_a_pipeline_is_a_start_and_is_known_to_a_plan(text, base, tmp_path):
    one, two = recipe_of(text, "one.txt", name="one"), further(text, base, start="one", train__steps=2)
    assert target_of(two, before=(one,)).recipe.model == dataclasses.replace(one.model, vocab_size=270)
    result = lmjax.run(Pipeline("both", (one, two)), tmp_path, quiet=True)
    assert result.summary["further"]["steps"] == 2
    assert lmjax.load(tmp_path / "further").model.settings.width == 16


def test_rows_that_its_start_cannot_read_are_refused(text, base, tmp_path):
    with pytest.raises(UserError, match=r"data.sequence_length = 32: expected at most the model's context of 16"):
        lmjax.run(further(text, base, data__sequence_length=32), tmp_path / "long", quiet=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_run_into_a_folder_with_another_checkpoint_is_refused(text, base, tmp_path, force):
    (tmp_path / "checkpoints" / "imported").mkdir(parents=True)
    (base / "checkpoints" / "pretrain" / "4").rename(tmp_path / "checkpoints" / "imported" / "0")
    try:
        with pytest.raises(UserError, match=r"holds checkpoints of 'imported'.*--start to begin from them"):
            lmjax.run(recipe_of(text, "one.txt"), tmp_path, force=force, quiet=True)
        with pytest.raises(UserError, match=r"holds checkpoints of 'imported'"):
            claim(tmp_path, SFT(start="base"), force)
        assert not (tmp_path / "checkpoints" / "pretrain").exists()
    finally:
        (tmp_path / "checkpoints" / "imported" / "0").rename(base / "checkpoints" / "pretrain" / "4")
