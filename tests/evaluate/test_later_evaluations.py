"""Evaluations of the stages that go on from a model: every source is heard, and a stop is honoured between batches."""

import dataclasses
import os
import signal

import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.evaluate.policy import PolicyEvaluation
from lmjax.model.heads import SCALAR
from lmjax.settings import DPO, PPO, SFT, CheckpointSettings, EvaluationSettings, RewardModel
from lmjax.tasks.task import TaskRun
from lmjax.training.record import read_metrics
from tests.running import saved_parameter, values_of
from tests.tiny import RATE, stage, write_rows

pytestmark = pytest.mark.xdist_group("rewarded")  # one process trains the reward model

LETTERS = "abcdefghijklmnopqrstuvwx"  # 24 records, three batches; the other source has 8 records, one batch


@pytest.fixture
def make(rewarded, two_devices, tmp_path):
    """A function from a kind of stage to its recipe: one step, two validation sources and room for two batches."""
    records = {SFT: lambda c: {"prompt": c, "answer": c * 2}, PPO: lambda c: {"prompt": c}}
    judged = {SFT: {"reward_model": "reward"}}

    def of(kind, **changes):
        record = records.get(kind, lambda c: {"prompt": c, "chosen": c * 2, "rejected": c})
        many, few = (
            write_rows(tmp_path / f"{name}.jsonl", [record(c) for c in letters])
            for name, letters in (("many", LETTERS), ("few", "ABCDEFGH"))
        )
        dialogue = {"dialogue__validation": many + few, "dialogue__packing": False, "dialogue__shuffle": False}
        evaluation = EvaluationSettings(every=100, batches=2, sample_tokens=4)
        parts = {"optimizer": RATE, "train__steps": 1, "epochs": None, "evaluation": evaluation}
        return stage(kind, many, name=kind.__name__.lower(), **(dialogue | parts | judged.get(kind, {}) | changes))

    return of


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (SFT, ("validation_loss", "validation_accuracy", "validation_reward")),
        (RewardModel, ("validation_loss", "validation_accuracy")),
        (DPO, ("validation_loss", "validation_accuracy")),
        (PPO, ("validation_reward", "validation_kl", "validation_length", "validation_finished")),
    ],
)
def test_two_batches_are_one_of_each_source(rewarded, make, kind, numbers, capsys):
    recipe = make(kind)
    summary = lmjax.run(recipe, rewarded / f"two-{recipe.name}").summary
    assert "many.jsonl: 24 rows, 8 planned, 0.33 epochs" in capsys.readouterr().out
    last = {name: value for line in read_metrics(rewarded / f"two-{recipe.name}") for name, value in line.items()}
    for number in numbers:
        many, few = (last[f"{number}/{name}.jsonl"] for name in ("many", "few"))
        assert last[number] == pytest.approx((many + few) / 2, rel=1e-5, abs=1e-7), "as many rows of each"
    assert last[f"{numbers[0]}/many.jsonl"] != last[f"{numbers[0]}/few.jsonl"]
    assert summary[f"{numbers[0]}/few.jsonl"] == last[f"{numbers[0]}/few.jsonl"]


@pytest.mark.parametrize("kind", [SFT, DPO, PPO])
def test_a_prompt_that_fills_the_context_is_refused_before_the_first_step(rewarded, make, kind):
    recipe = make(kind, evaluation=EvaluationSettings(prompts=("x" * 48,), sample_tokens=4))
    with pytest.raises(UserError, match=r"evaluation.prompts\[0\] = 'User: x+.*: 65 tokens, expected fewer than"):
        lmjax.run(recipe, rewarded / f"full-{recipe.name}", quiet=True)
    assert not (rewarded / f"full-{recipe.name}" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (PPO, {}, r"checkpoint.best_by = 'validation_loss': expected validation_reward"),
        (
            DPO,
            {"validation": ()},
            r"dialogue.validation = \(\): expected at least one source with checkpoint.keep_best",
        ),
    ],
)
def test_the_best_by_a_number_that_no_evaluation_tells_are_refused(rewarded, make, kind, changes, message):
    recipe = make(kind, checkpoint=CheckpointSettings(keep_best=1))
    recipe = dataclasses.replace(recipe, dialogue=dataclasses.replace(recipe.dialogue, **changes))
    with pytest.raises(UserError, match=message):
        lmjax.run(recipe, rewarded / f"best-{recipe.name}", quiet=True)


def test_a_signal_in_a_policys_first_evaluation_is_honoured_at_its_next_batch(rewarded, make, monkeypatch, capsys):
    plain, batches = PolicyEvaluation._batch, []

    def asking(evaluation, state, numbers, index):
        batches.append(index)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(evaluation, state, numbers, index)

    recipe = make(PPO, evaluation=EvaluationSettings(every=100))
    with monkeypatch.context() as patch:
        patch.setattr(PolicyEvaluation, "_batch", asking)
        assert lmjax.run(recipe, rewarded / "asked").exit_code == 143
    assert batches == [0, 1], "of four"
    assert "stopped at step 0 of 1; the same command resumes" in capsys.readouterr().out
    assert lmjax.run(recipe, rewarded / "asked", quiet=True).exit_code == 0
    told = list(values_of(rewarded / "asked", "validation_reward"))
    assert told == [0, 1]


def bias_of(folder):
    return float(saved_parameter(folder, SCALAR, "bias"))


def test_a_reward_model_stopped_while_it_is_centred_is_centred_by_the_next_run(rewarded, make, monkeypatch):
    recipe, plain, readings = make(RewardModel), TaskRun.sums_over, []

    def asking(*arguments):
        readings.append(arguments)
        if len(readings) == 1:  # the demonstrations, at the last step
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    lmjax.run(recipe, rewarded / "centred", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(TaskRun, "sums_over", asking)
        assert lmjax.run(recipe, rewarded / "interrupted", quiet=True).exit_code == 143
    biases = [bias_of(rewarded / name) for name in ("centred", "interrupted")]
    assert abs(biases[0] - biases[1]) > 1e-4
    assert lmjax.run(recipe, rewarded / "interrupted", quiet=True).exit_code == 0
    assert bias_of(rewarded / "interrupted") == pytest.approx(biases[0], abs=1e-6)
