"""A task of a recipe's own, as CONTRIBUTING.md writes it: it trains, resumes, is planned and is reported."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.target import target_of
from lmjax.runs.pipeline import plan_stages
from lmjax.settings import CheckpointSettings, LogSettings, OptimizerSettings, Pipeline
from lmjax.settings.recipe_files import from_json, load_recipe, to_json
from tests.running import lines_of
from tests.tiny import changed, pretrain, text

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
LENGTH, STEPS = 16, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example in a recipe file, its data, and what it is initialised from."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = re.findall(r"```python\n(# sentiment\.py.*?)```", GUIDE.read_text(), re.S)
    assert code.count("\n") < 60
    (folder / "sentiment.py").write_text(code)
    rng = np.random.default_rng(0)
    for name, count in (("train", 64), ("held", 24)):
        rows = [
            {"text": "".join(rng.choice(list("ab" if y else "yz"), 8)), "label": int(y)}
            for y in rng.integers(0, 2, count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("abyz " * 400)
    plain = {"optimizer": OptimizerSettings(), "train__steps": 2}
    base = pretrain(text(folder / "text.txt"), name="base", **plain)
    lmjax.run(base, folder / "base", quiet=True)
    return folder


@pytest.fixture
def recipe(folder, monkeypatch):
    """The stage that the file's recipe() returns, in few steps."""
    monkeypatch.chdir(folder)
    stage = load_recipe("sentiment.py")
    return changed(
        stage,
        rows__sequence_length=LENGTH,
        rows__batch_size=8,
        train__steps=STEPS,
        optimizer__learning_rate=0.01,
        evaluation__every=10,
        checkpoint=CheckpointSettings(every=10, keep_last=5),
        log=LogSettings(every=5, tensorboard=False),
    )


def test_it_trains_and_its_report_shows_its_own_metrics_and_values(recipe, folder, tmp_path):
    result = lmjax.run(recipe, tmp_path / "run", quiet=True)
    assert result.exit_code == 0 and result.summary["steps"] == STEPS
    assert result.summary["validation_loss"] < 0.1  # two letters tell the labels apart
    page = (tmp_path / "run" / "report.html").read_text()
    assert "right" in page and "validation loss" in page and "lmjax finetune" in page and "train.jsonl" in page
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["validation_right"] == 1.0


def test_it_resumes_to_the_numbers_of_an_uninterrupted_run(recipe, no_charts, tmp_path):
    longer = changed(recipe, optimizer__schedule__kind="constant")
    short = changed(longer, train__steps=20)
    lmjax.run(longer, tmp_path / "uninterrupted", quiet=True)
    lmjax.run(short, tmp_path / "resumed", quiet=True)
    lmjax.run(longer, tmp_path / "resumed", quiet=True)
    for one, other in zip(lines_of(tmp_path / "uninterrupted"), lines_of(tmp_path / "resumed"), strict=True):
        assert (one["step"], one["loss"], one["grad_norm"]) == (other["step"], other["loss"], other["grad_norm"])


def test_it_is_planned_as_it_runs(recipe, folder):
    target = target_of(changed(recipe, model=changed(load_model(folder), vocab_size=257)))
    text = target.lower(make_mesh(recipe.mesh, jax.devices()[:1])).as_text()
    assert f"tensor<8x{LENGTH}xi32>" in text and "tensor<8xi32>" in text  # tokens and labels
    assert target.cost.flops > 0 and target.cost.rows == 8


def load_model(folder):
    return from_json((folder / "base" / "recipe.json").read_text()).model


def test_its_recipe_keeps_names_and_values_and_no_code(recipe, no_charts, tmp_path):
    text = to_json(recipe)
    again = from_json(text)
    assert to_json(again) == text and again.language_model == recipe.language_model == ("params", "trunk")
    lmjax.run(changed(recipe, train__steps=1), tmp_path / "run", quiet=True)
    assert len(lmjax.load(tmp_path / "run").generate("ab", max_tokens=2)) == 1  # the trunk is a language model
    with pytest.raises(UserError, match=r"finetune.task: expected an object of a class that extends Task.*sentiment"):
        lmjax.run(again, tmp_path / "other", quiet=True)


def test_a_value_of_it_that_changes_is_a_change_of_the_recipe(recipe, no_charts, tmp_path):
    lmjax.run(changed(recipe, train__steps=1), tmp_path / "run", quiet=True)
    other = changed(recipe, task__train="held.jsonl")
    with pytest.raises(UserError, match=r"task.fields.train: 'train.jsonl' -> 'held.jsonl'"):
        lmjax.run(other, tmp_path / "run", quiet=True)


def test_it_is_a_stage_of_a_pipeline_and_the_command_line_sets_its_fields(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["run", "sentiment.py", "--workdir", str(tmp_path / "run"), "--train.steps", "1"]
    assert main([*command, "--rows.sequence-length", "16", "--task.train", "held.jsonl"]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["task"]["fields"]["train"] == "held.jsonl"
    base = from_json((folder / "base" / "recipe.json").read_text())
    pipeline = Pipeline("both", (base, changed(load_recipe("sentiment.py"), start="base")))
    assert [plan.action for plan in plan_stages(pipeline, tmp_path / "pipe")] == ["run", "run"]
