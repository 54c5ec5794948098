"""What stages start from, centre on and choose by where a recipe asks for other than the usual, run in a few steps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.checkpoints.initial import open_initial
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.model.heads import TRUNK, ScalarModel
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import CheckpointSettings, MeshSettings, RewardSettings
from lmjax.stages.ppo import _fresh
from lmjax.stages.ppo_learner import ppo_learner, ppo_state
from tests.running import saved_parameter, values_of
from tests.tiny import NO_DECAY, dialogue, ppo, reward_model, sft, write_rows

# One process trains the reward model.
pytestmark = [pytest.mark.xdist_group("rewarded"), pytest.mark.usefixtures("two_devices")]


@pytest.fixture
def prompts(tmp_path):
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": c} for c in "abcdefgh"])


@pytest.fixture
def begun(rewarded, prompts, tmp_path):
    """A function (baseline, whether a reward model judges) -> the learner, its first state and the reward model."""

    def begin(baseline, judged=True):
        recipe = ppo(prompts, dialogue__sequence_length=24, ppo__baseline=baseline)
        start, judge = (open_initial(str(rewarded / name), tmp_path) for name in ("base", "reward"))
        mesh = make_mesh(MeshSettings(), jax.devices()[:1])
        vocabulary = Vocabulary(start.tokenizer.vocab_size, start.tokenizer.eos_id)
        judges = judge.settings if judged else None
        learner, axes = ppo_learner(recipe, start.settings, judges, vocabulary, "cpu", steps=2)
        abstract = ppo_state(learner, axes, mesh)
        frozen = {"reference": start.language_model(abstract.params["policy"])}
        if judged:
            frozen["reward"] = judge.reward_model(abstract_params(learner.reward, mesh))
        return learner, _fresh(learner, abstract, start, judge if judged else None, frozen, 0, start), frozen

    return begin


def read(learner, params):
    """The values before the last two of six tokens, [2, 2]."""
    rows = {"tokens": jnp.arange(12).reshape(2, 6) + 97, "segments": jnp.ones((2, 6), jnp.int32)}
    rows["positions"] = jnp.tile(jnp.arange(6), (2, 1))
    return learner._read(params, rows, 2)[2], rows


def test_a_value_model_begins_as_the_reward_model(begun):
    learner, state, frozen = begun("value")
    jax.tree.map(np.testing.assert_array_equal, state.params["value"], frozen["reward"])
    jax.tree.map(np.testing.assert_array_equal, state.params["policy"], frozen["reference"])
    values, rows = read(learner, state.params)
    expected = ScalarModel(learner.policy).values(frozen["reward"], rows)[:, -3:-1]
    np.testing.assert_array_equal(values, expected)
    assert np.abs(expected).min() > 1e-3


@pytest.mark.parametrize(("baseline", "judged"), [("value_head", True), ("value", False)])
def test_values_begin_at_0_where_no_reward_model_gives_them(begun, baseline, judged):
    learner, state, frozen = begun(baseline, judged)
    np.testing.assert_array_equal(read(learner, state.params)[0], np.zeros((2, 2)))
    if baseline == "value":  # on a trunk of its own
        jax.tree.map(np.testing.assert_array_equal, state.params["value"][TRUNK], frozen["reference"])


def test_a_value_head_is_trained_beside_the_policy(rewarded, prompts):
    headed = {"dialogue__sequence_length": 24, "ppo__baseline": "value_head", "value_optimizer": NO_DECAY}
    recipe = ppo(prompts, name="headed", train__steps=2, **headed)
    result = lmjax.run(recipe, rewarded / "headed", quiet=True)
    assert result.exit_code == 0 and result.summary["steps"] == 2
    explained = values_of(rewarded / "headed", "value_explained")
    assert list(explained) == [1, 2] and np.isfinite(list(explained.values())).all()
    kernel = saved_parameter(rewarded / "headed", "value", "kernel", shape=(16,))
    assert np.abs(kernel).max() > 1e-3 and abs(saved_parameter(rewarded / "headed", "value", "bias")) > 1e-3  # were 0


GRADERS = """
import os

def matches(prompts, responses, ground_truth, weight=1.0):
    seen.append((tuple(prompts), tuple(ground_truth)))
    if len(seen) == FAILS_AT:
        raise TimeoutError("the grader is down")
    return [float(len(response)) for response in responses]

def silent(prompts, responses):
    return [None for _ in responses]

seen = []
FAILS_AT = int(os.environ.get("FAILS_AT", 0))
"""


def test_a_grader_that_fails_loses_no_iteration_and_sees_its_records(rewarded, tmp_path, monkeypatch):
    (tmp_path / "graders.py").write_text(GRADERS)
    rows = [{"prompt": c * 9, "ground_truth": ord(c)} for c in "abcdefgh"]
    sources = write_rows(tmp_path / "asked.jsonl", rows)
    functions = {"source": f"{tmp_path}/graders.py:matches", "functions": (f"{tmp_path}/graders.py:silent",)}
    recipe = ppo(
        sources,
        name="graded",
        start=str(rewarded / "base"),
        reward=RewardSettings(**functions),
        dialogue=dialogue(sources, sequence_length=19, shuffle=False, too_long="right"),
        ppo__baseline="value_head",
        train__steps=4,
        value_optimizer=NO_DECAY,
    )
    monkeypatch.setenv("FAILS_AT", "3")
    expected = r"graders\.py:7: TimeoutError: the grader is down; the 8 responses to the prompts of .*asked\.jsonl:1, "
    with pytest.raises(UserError, match=r"reward\.source = .*" + expected):
        lmjax.run(recipe, tmp_path / "graded", quiet=True)
    assert find_checkpoint(tmp_path / "graded").path.name == "2"
    assert list(values_of(tmp_path / "graded", "reward")) == [1, 2]
    seen = []
    monkeypatch.setattr("builtins.seen", seen, raising=False)
    monkeypatch.delenv("FAILS_AT")
    (tmp_path / "graders.py").write_text(GRADERS.replace("seen = []", ""))
    assert lmjax.run(recipe, tmp_path / "graded", quiet=True, force=True).exit_code == 0
    assert list(values_of(tmp_path / "graded", "reward")) == [1, 2, 3, 4]
    texts = tuple(f"User: {c * 2}\nAssistant:" for c in "abcdefgh")  # what is left of the prompts in 19 tokens
    assert seen == [(texts, tuple(map(ord, "abcdefgh")))] * 2


def mean_score(checkpoint, file, capsys):
    assert main(["score", str(checkpoint), str(file), "--json"]) == 0
    return np.mean([json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()])


def test_the_demonstrations_of_a_recipe_score_0_and_not_the_best_answers(rewarded, tmp_path, capsys):
    letters = "abcdefghijk"  # not a multiple of the rows of a batch
    rankings = write_rows(tmp_path / "ranks.jsonl", [{"prompt": c, "chosen": c * 2, "rejected": c} for c in letters])
    best = tmp_path / "best.jsonl"
    write_rows(best, [{"prompt": c, "answer": c * 2} for c in letters])
    others = write_rows(tmp_path / "others.jsonl", [{"prompt": c, "answer": "zzz"} for c in letters])
    recipe = reward_model(rankings, epochs=3.0)
    for name, demonstrations, zero, not_zero in (
        ("others", others, tmp_path / "others.jsonl", best),
        ("usual", (), best, tmp_path / "others.jsonl"),
    ):
        own = dataclasses.replace(recipe, name=name, demonstrations=demonstrations)
        lmjax.run(own, rewarded / name, quiet=True)
        assert mean_score(rewarded / name, zero, capsys) == pytest.approx(0.0, abs=1e-4)
        assert abs(mean_score(rewarded / name, not_zero, capsys)) > 1e-2


def test_sft_is_chosen_by_its_validation_loss(rewarded, tmp_path):
    """What is trained on says other than the validation set, which a few steps learn to write and more unlearn."""
    train = write_rows(tmp_path / "train.jsonl", [{"prompt": c, "answer": c * 2} for c in "abcdefgh"])
    held_out = write_rows(tmp_path / "held.jsonl", [{"prompt": c, "answer": c * 3} for c in "ijklmnop"])
    best = CheckpointSettings(every=2, keep_last=1, keep_best=1, best_by="validation_loss", select_best=True)
    rates = {"train__steps": 12, "epochs": None, "optimizer__learning_rate": 0.1}
    recipe = sft(train, name="chosen", dialogue__validation=held_out, evaluation__every=2, checkpoint=best, **rates)
    lmjax.run(recipe, rewarded / "chosen", quiet=True)
    losses = values_of(rewarded / "chosen", "validation_loss")
    lowest = min(losses, key=losses.get)
    assert list(losses) == [2, 4, 6, 8, 10, 12] and lowest < 12
    assert lmjax.load(rewarded / "chosen").step == lowest
