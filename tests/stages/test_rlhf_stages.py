"""SFT, the reward model, DPO and PPO, run as a pipeline of a few tiny steps: what they learn, and where they resume."""

import json

import jax
import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.checkpoints.initial import open_initial
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.settings import (
    CheckpointSettings,
    Compare,
    EvaluationSettings,
    KLSettings,
    Pipeline,
    PPOSettings,
    RewardSettings,
)
from lmjax.stages import train_stage as training
from lmjax.tasks.sampled_rewards import SampledRewards
from lmjax.training.record import read_metrics
from tests.running import lines_of, values_of
from tests.tiny import NO_DECAY, changed

pytestmark = pytest.mark.xdist_group("rlhf stages")  # one process runs the pipeline that they share


def last(folder, name):
    return lines_of(folder, name)[-1][name]


def test_every_stage_goes_on_from_the_one_before_and_is_done_once(ran, stages):
    assert [json.loads((ran / name / "summary.json").read_text())["steps"] for name in stages] == [2, 5, 20, 4, 4]
    again = lmjax.run(Pipeline("all", tuple(stages.values())), ran, quiet=True)
    assert again.summary == {}  # nothing ran
    models = {name: open_initial(name, ran / "new").recipe.model for name in ("sft", "reward", "dpo", "ppo")}
    dropout = {name: (model.dropout, model.attention.dropout) for name, model in models.items()}
    assert dropout == {"sft": (0.1, 0.1)} | dict.fromkeys(("reward", "dpo", "ppo"), (0.0, 0.0))


def test_the_reward_model_learns_the_rankings(ran):
    assert last(ran / "reward", "validation_accuracy") > 0.95
    assert last(ran / "reward", "accuracy_of_3") == last(ran / "reward", "validation_accuracy")
    assert last(ran / "reward", "validation_loss") < 0.45
    assert last(ran / "reward", "held_out_labelers_accuracy") < 0.05
    assert "calibration_error" in read_metrics(ran / "reward")[-1]


def test_dpo_starts_at_the_reference_and_raises_the_better_answers(ran):
    lines = lines_of(ran / "dpo")
    assert abs(lines[0]["margin"]) < 1e-5  # no answer is above another before the first update
    assert np.log(2) * 2 / 3 < lines[0]["loss"] < np.log(2)  # of three pairs, all or two are ordered
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert last(ran / "dpo", "validation_accuracy") > 0.8


def test_ppo_starts_each_iteration_at_its_own_policy_and_logs_what_it_must(ran):
    lines = lines_of(ran / "ppo", "reward")
    assert len(lines) == 4
    for line in lines:
        assert abs(line["first_update_kl"]) < 1e-5
        assert line["sampler_gap"] < 1e-5
    assert abs(lines[0]["kl"]) < 1e-5  # the reference is where it starts
    wanted = {"kl_k1", "kl_k2", "kl_k3", "entropy", "ratio", "ratio_variance", "clip_fraction", "value_explained"}
    wanted |= {"response_length", "finished", "kl_coefficient", "mix_cross_entropy", "policy_loss", "value_loss"}
    assert wanted <= lines[-1].keys()
    samples = lines_of(ran / "ppo", "sample")
    assert len(samples) == 12 and samples[0]["prompt"].startswith("User: ") and "sample_reward" in samples[0]


def test_a_policy_is_evaluated_before_it_learns_and_by_the_known_reward(ran):
    lines = lines_of(ran / "ppo", "validation_reward")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert abs(lines[0]["validation_kl"]) < 1e-5 < abs(lines[-1]["validation_kl"])
    assert all({"validation_gold", "validation_length", "validation_finished"} <= line.keys() for line in lines)
    assert list(values_of(ran / "ppo", "gold")) == [1, 2, 3, 4]
    for line in lines_of(ran / "ppo", "sample"):
        assert line["sample_gold"] == line["sample"].count("a")


def test_every_stage_and_the_pipeline_have_a_report(ran, stages):
    page = (ran / "report.html").read_text()
    assert f"<b>Done: </b>{len(stages)} of {len(stages)} stages." in page
    assert "Gold reward over KL: ppo from" in page and "Calibration of pairs" in page
    for name in stages:
        assert "<b>Done: </b>" in (ran / name / "report.html").read_text()


def test_resuming_in_the_middle_of_ppo_is_bitwise(ran, files, stages, monkeypatch):
    part = files.folder / "resumed"
    part.mkdir()
    for name in ("base", "sft", "reward"):
        (part / name).symlink_to(ran / name)
    job, fit, stops = training.Job, training.fit, []

    def noting(job, state, stop):
        stops.append(stop)
        return fit(job, state, stop)

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", noting)
        patched.setattr(training, "Job", lambda **fields: job(**(fields | {"record": _stopping(fields, stops)})))
        stopped = lmjax.run(stages["ppo"], part / "ppo", quiet=True)
    assert stopped.signal == 15
    assert find_checkpoint(part / "ppo").step < 4
    assert lmjax.run(stages["ppo"], part / "ppo", quiet=True).exit_code == 0
    a, b = (saved_state(place / "ppo" / "checkpoints" / "ppo" / "4") for place in (ran, part))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert int(a["step"]) == 4


def _stopping(fields, stops):
    def recording(step, values):
        fields["record"](step, values)
        if step == 2:
            stops[0].signal = 15

    return recording


def saved_state(path):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return jax.tree.map(np.asarray, reader.restore((path / "state").absolute()))


def test_a_policy_is_loaded_by_its_average_and_a_pipeline_by_its_last_policy(ran):
    loaded = lmjax.load(ran)
    average = saved_state(ran / "ppo" / "checkpoints" / "ppo" / "4")["opt_state"]["average"]
    np.testing.assert_array_equal(loaded.params["tokens"], average["tokens"])
    assert len(loaded.generate("User: a\nAssistant:", max_tokens=4)) == 1


def test_the_score_of_each_answer_in_a_file_is_printed(ran, files, capsys):
    assert main(["score", str(ran / "reward"), str(files.folder / "ranks.jsonl"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 48 and [row["answer"] for row in rows[:3]] == ["aa", "a", "zzz"]
    assert rows[0]["prompt"] == "User: a\nAssistant:"
    scores = np.array([row["score"] for row in rows]).reshape(16, 3)
    assert scores[:, 0].mean() == pytest.approx(0.0, abs=1e-4)  # as training left it
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    assert main(["score", str(ran / "sft"), str(files.folder / "ranks.jsonl")]) == 2  # a language model reads texts
    assert "ranks.jsonl:1: no field 'text'" in capsys.readouterr().err


def test_a_python_function_may_give_the_reward(ran, files, stages, lowered):
    def made(function, gold="letters", **changes):
        reward = RewardSettings(source=f"{files.scores}:{function}", known_reward=f"{files.scores}:{gold}")
        plain = {"ppo": PPOSettings(response_tokens=6, **changes), "kl": KLSettings(), "optimizer": NO_DECAY, "mix": ()}
        return changed(stages["ppo"], start=str(ran / "sft"), reward=reward, train__steps=3, **plain)

    result = lmjax.run(made("letters", baseline="group", group=2), files.folder / "function", quiet=True)
    lines = lines_of(files.folder / "function", "reward")
    assert result.summary["steps"] == len(lines) == 3
    assert all(line["gold"] == pytest.approx(line["reward"]) for line in lines)  # it is the same function
    assert [lowered.count(f"jit({phase})") for phase in ("roll", "learn", "divergence")] == [1, 1, 1]
    assert [line["kl"] for line in lines] == [line["kl_k3"] for line in lines]  # what GRPO penalises
    with pytest.raises(UserError, match=r"scores\.py:broken': the score of a response is nan: expected a finite"):
        lmjax.run(made("broken", baseline="value_head"), files.folder / "nan", quiet=True)
    with pytest.raises(UserError, match=r"expected 8 scores, one per response, got an array of shape \(1,\)"):
        lmjax.run(made("short", baseline="value_head"), files.folder / "short", quiet=True)
    with pytest.raises(UserError, match="has no function 'other'; its functions: letters, broken, short"):
        lmjax.run(made("other", baseline="value_head"), files.folder / "other", quiet=True)
    with pytest.raises(UserError, match=r"reward\.known_reward = '.*:short': expected 8 scores, one per response"):
        lmjax.run(made("letters", gold="short", baseline="value_head"), files.folder / "gold", quiet=True)


def test_what_does_not_fit_together_is_refused_before_anything_is_computed(ran, files, stages):
    with pytest.raises(UserError, match="at most the policy's context of 48; shorten prompts or responses"):
        lmjax.run(changed(stages["ppo"], ppo__response_tokens=17), ran / "longer", quiet=True)
    with pytest.raises(UserError, match=r"reward\.source = 'sft': expected a reward model"):
        lmjax.run(changed(stages["ppo"], reward=RewardSettings(source="sft")), ran / "wrong", quiet=True)
    with pytest.raises(UserError, match=r"start = 'nowhere': .*no checkpoint"):
        lmjax.run(changed(stages["sft"], start="nowhere"), files.folder / "none", quiet=True)
    too_long = "dialogue.sequence_length = 64: expected at most the model's context of 48; shorten the rows"
    for name in ("sft", "reward", "dpo"):
        with pytest.raises(UserError, match=too_long):
            lmjax.run(changed(stages[name], dialogue__sequence_length=64), ran / f"long-{name}", quiet=True)
    with pytest.raises(UserError, match=r"sequence_length \+ response_tokens = 96: expected at most the policy's"):
        asked = Compare(
            start="sft", dialogue=stages["ppo"].dialogue, known_reward="lmjax.rl.known_rewards:short_sentence"
        )
        lmjax.run(asked, ran / "long-compare", quiet=True)


def test_sft_is_selected_by_a_reward_models_score_of_its_answers(ran, stages, monkeypatch):
    scored, plain = [], SampledRewards.__call__

    def favouring_the_second(judge, params):
        found = plain(judge, params)
        scored.append(float(np.concatenate(found).mean()))
        return [scores + (100.0 if len(scored) == 2 else 0.0) for scores in found]

    monkeypatch.setattr(SampledRewards, "__call__", favouring_the_second)
    best = CheckpointSettings(every=2, keep_last=1, keep_best=1, best_by="validation_reward", select_best=True)
    evaluation = EvaluationSettings(every=2, sample_tokens=8)
    changes = {"name": "judged", "reward_model": "reward", "checkpoint": best, "evaluation": evaluation}
    recipe = changed(stages["sft"], **changes, epochs=None, train__steps=6)
    assert recipe.sources()["reward_model"] == "reward"
    lmjax.run(recipe, ran / "judged", quiet=True)
    rewards = values_of(ran / "judged", "validation_reward")
    assert list(rewards) == [2, 4, 6] and len(set(scored)) == 3 and max(map(abs, scored)) < 50
    assert rewards[4] == pytest.approx(scored[1] + 100.0)
    assert lmjax.load(ran / "judged").step == 4
    with pytest.raises(UserError, match=r"reward_model = 'sft': expected a reward model"):
        lmjax.run(changed(recipe, reward_model="sft"), ran / "unjudged", quiet=True)
    with pytest.raises(UserError, match=r"where a reward model reads them; shorten either"):
        lmjax.run(changed(recipe, evaluation__sample_tokens=17), ran / "long", quiet=True)
