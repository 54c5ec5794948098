"""One stage with several seeds, and runs that end early: what is measured, what resumes, what is refused."""

import dataclasses
import json
import statistics

import jax
import numpy as np
import pytest
from rich.console import Console

import lmjax
from lmjax.errors import UserError
from lmjax.runs.seeds import print_summary, run_seeds, summarised
from lmjax.settings import (
    CheckpointSettings,
    EvaluationSettings,
    Finetune,
    LabelledSettings,
    LogSettings,
    OptimizerSettings,
    Pipeline,
    RowSettings,
    ScheduleSettings,
    TrainSettings,
)
from lmjax.tasks.sentences import Sentences
from tests.fresh import encoder

pytestmark = pytest.mark.usefixtures("compiled_once", "no_charts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder, and labels that have nothing to do with their texts."""
    folder = tmp_path_factory.mktemp("seeds")
    encoder(folder / "encoder")
    rng = np.random.default_rng(0)
    for name, count in (("train", 32), ("held", 24)):
        texts = [
            {"text": " ".join(rng.choice(list("cdefgh"), 5)), "label": "ab"[rng.integers(2)]} for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    return folder


def stage(folder, steps=6, every=2, patience=None, **checkpoint):
    train, held = ((LabelledSettings(str(folder / f"{name}.jsonl")),) for name in ("train", "held"))
    return Finetune(
        start=str(folder / "encoder"),
        task=Sentences(train=train, validation=held),
        rows=RowSettings(sequence_length=8, buckets=(4,), batch_size=8),
        optimizer=OptimizerSettings(learning_rate=0.01, schedule=ScheduleSettings(kind="constant")),
        train=TrainSettings(steps=steps),
        evaluation=EvaluationSettings(every=every, patience=patience),
        checkpoint=CheckpointSettings(**{"every": 2, "best_by": "validation_accuracy", **checkpoint}),
        log=LogSettings(tensorboard=False),
    )


def lines_of(workdir, name="validation_accuracy"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def test_each_seed_is_a_run_of_its_own_and_the_numbers_are_those_of_all(folder, tmp_path, capsys):
    result = run_seeds(stage(folder), [3, 5, 7], tmp_path / "run", quiet=True)
    assert result.exit_code == 0
    measured = [lines_of(tmp_path / "run" / f"seed-{seed}")[-1] for seed in (3, 5, 7)]
    losses = [line["validation_loss"] for line in measured]
    assert len(set(losses)) == 3, "seeds draw other heads"
    kept = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert [own["validation_loss"] for own in kept["seeds"].values()] == losses
    of = kept["summary"]["validation_loss"]
    assert of["mean"] == pytest.approx(np.mean(losses)) and of["deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert f"{of['mean']:.4f} ± {of['deviation']:.4f}" in capsys.readouterr().out
    recipes = [json.loads((tmp_path / "run" / f"seed-{seed}" / "recipe.json").read_text()) for seed in (3, 5, 7)]
    assert [(own["train"]["seed"], own["rows"]["seed"]) for own in recipes] == [(3, 3), (5, 5), (7, 7)]
    again = run_seeds(stage(folder), [3, 5, 7], tmp_path / "run", quiet=True)
    assert again.summary == result.summary


def test_the_best_evaluation_counts_where_the_best_checkpoint_is_selected(folder, tmp_path):
    recipe = stage(folder, steps=10, keep_best=1, select_best=True)
    result = run_seeds(recipe, [1], tmp_path / "run", quiet=True)
    accuracies = [line["validation_accuracy"] for line in lines_of(tmp_path / "run" / "seed-1")]
    assert result.summary["summary"]["validation_accuracy"]["mean"] == max(accuracies)


def test_what_is_no_seed_or_no_single_stage_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"--seeds.*name each once"):
        run_seeds(stage(folder), [1, 1], tmp_path)
    with pytest.raises(UserError, match=r"--seeds.*one stage that trains"):
        run_seeds(Pipeline("several", (stage(folder),)), [1], tmp_path)


def test_a_deviation_is_the_samples_and_one_seed_has_none():
    measured = {1: {"validation_f1": 0.5, "validation_loss": 1.0}, 2: {"validation_f1": 0.75}}
    assert summarised(measured) == {
        "validation_f1": {"mean": 0.625, "deviation": statistics.stdev([0.5, 0.75]), "least": 0.5, "greatest": 0.75}
    }
    assert summarised({1: {"a": 2.0}})["a"]["deviation"] == 0.0
    console = Console(width=80, record=True)
    print_summary(summarised(measured), 2, console)
    assert "0.6250 ± 0.1768" in console.export_text()


def test_a_run_ends_once_its_evaluations_do_not_improve_and_says_that_it_is_done(folder, tmp_path):
    """An accuracy that has two values in all: an equal one is no improvement."""
    recipe = stage(folder, steps=60, patience=2, keep_best=1, select_best=True)
    result = lmjax.run(recipe, tmp_path / "run", quiet=True)
    lines = lines_of(tmp_path / "run")
    values = [line["validation_accuracy"] for line in lines]
    best = values.index(max(values))
    assert len(values) == best + 3 and lines[-1]["step"] == result.summary["steps"] < 60
    assert lmjax.run(recipe, tmp_path / "run", quiet=True).summary == result.summary


def test_a_run_that_was_stopped_ends_at_the_same_step_with_the_same_parameters(folder, tmp_path):
    recipe = stage(folder, steps=60, patience=2)
    whole = lmjax.run(recipe, tmp_path / "whole", quiet=True)
    shorter = dataclasses.replace(recipe, train=TrainSettings(steps=2))
    lmjax.run(shorter, tmp_path / "parts", quiet=True)
    (tmp_path / "parts" / "summary.json").unlink()  # which says that the run had ended by itself
    resumed = lmjax.run(recipe, tmp_path / "parts", quiet=True, force=True)
    assert resumed.summary["steps"] == whole.summary["steps"] < 60
    one, other = (jax.tree.leaves(lmjax.load(tmp_path / name).params) for name in ("whole", "parts"))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_training_data_whose_classes_changed_cannot_be_resumed_with(folder, tmp_path):
    lmjax.run(stage(folder, steps=2), tmp_path / "run", quiet=True)
    changed = (tmp_path / "train.jsonl").write_text((folder / "train.jsonl").read_text().replace('"a"}', '"c"}'))
    assert changed
    recipe = stage(folder, steps=4)
    task = dataclasses.replace(recipe.task, train=(LabelledSettings(str(tmp_path / "train.jsonl")),), validation=())
    recipe = dataclasses.replace(recipe, task=task, checkpoint=CheckpointSettings(every=2))
    with pytest.raises(UserError, match=r"task\.labels = .*'b', 'c'.*expected \['a', 'b'\], as of"):
        lmjax.run(recipe, tmp_path / "run", quiet=True, force=True)


def test_a_metric_that_no_evaluation_has_is_refused(folder):
    with pytest.raises(UserError, match=r"checkpoint\.best_by = 'validation_bleu': expected validation_accuracy or "):
        stage(folder, best_by="validation_bleu")
