"""SFT, the reward model, DPO and PPO, run as a pipeline of a few tiny steps: what they learn, and where they resume."""

import dataclasses
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
    DPO,
    PPO,
    SFT,
    AttentionSettings,
    CheckpointSettings,
    Compare,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    KLSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    PPOSettings,
    Pretrain,
    RewardModel,
    RewardSettings,
    ScheduleSettings,
    SourceSettings,
    TrainSettings,
)
from lmjax.stages import compare as comparing
from lmjax.stages import train_stage as training
from lmjax.tasks.sampled_rewards import SampledRewards
from lmjax.training.record import read_metrics

pytestmark = pytest.mark.xdist_group("rlhf stages")  # one process runs the pipeline that they share

COMMON = {
    "mesh": MeshSettings(data=8),
    "evaluation": EvaluationSettings(every=2),
    "checkpoint": CheckpointSettings(every=2, keep_last=9),
    "log": LogSettings(every=1, tensorboard=False),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (DialogueSourceSettings(path=str(path)),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rlhf")


@pytest.fixture(scope="module")
def dialogue(folder):
    """Settings of demonstrations, rankings and prompts about single letters."""
    letters = "abcdefghijklmnop"
    demonstrations = write(folder / "sft.jsonl", [{"prompt": c, "answer": c * 2} for c in letters])
    rankings = write(
        folder / "ranks.jsonl",
        [{"prompt": c, "answers": [c * 2, c, "zzz"], "ranks": [0, 1, 2 if c < "h" else 1]} for c in letters],
    )
    prompts = write(folder / "prompts.jsonl", [{"prompt": c} for c in letters])
    sizes = {"sequence_length": 32, "batch_size": 8}
    return {
        "sft": DialogueSettings(train=demonstrations, validation=demonstrations, **sizes),
        "rank": DialogueSettings(train=rankings, validation=rankings, **sizes),
        "prompt": DialogueSettings(train=prompts, validation=prompts, **sizes),
    }


@pytest.fixture(scope="module")
def text(folder):
    path = folder / "text.txt"
    path.write_text("\n".join(f"User: {c}\nAssistant: {c}{c}" for c in "abcdefghijklmnop" * 20))
    return (SourceSettings(kind="text", path=str(path)),)


def rate(**changes):
    return OptimizerSettings(**({"learning_rate": 1e-2, "weight_decay": 0.0} | changes))


LETTERS = """
def letters(prompts, responses):
    assert prompts[0].startswith('User: ')
    return [r.count('a') for r in responses]

def broken(prompts, responses):
    return [float('nan')] * len(responses)

def short(prompts, responses):
    return [0.0]
"""


@pytest.fixture(scope="module")
def scores(folder):
    """A file of reward functions."""
    path = folder / "scores.py"
    path.write_text(LETTERS)
    return path


@pytest.fixture(scope="module")
def contrary(folder):
    """Rankings by one who likes what the others do not."""
    return write(folder / "contrary.jsonl", [{"prompt": c, "answers": [c * 2, c], "ranks": [1, 0]} for c in "abcdefgh"])


@pytest.fixture(scope="module")
def stages(dialogue, contrary, text, scores):
    reward = RewardSettings(source="reward", known_reward=f"{scores}:letters", no_eos_penalty=0.5)
    ppo = PPOSettings(response_tokens=6, epochs=2, minibatches=1, ema_decay=0.5, ptx_coefficient=2.0)
    return {
        "base": Pretrain(
            name="base",
            data=DataSettings(train=text, validation=text, sequence_length=32, batch_size=8),
            model=ModelSettings(layers=1, width=16, context=48, attention=AttentionSettings(heads=2)),
            train=TrainSettings(steps=2),
            **COMMON,
        ),
        "sft": SFT(
            start="base", dialogue=dialogue["sft"], mix=text, dropout=0.1, epochs=2.0, optimizer=rate(), **COMMON
        ),
        "reward": RewardModel(
            start="sft",
            dialogue=dialogue["rank"],
            held_out_labelers=contrary,
            epochs=10.0,
            optimizer=rate(),
            **COMMON,
        ),
        "dpo": DPO(start="sft", dialogue=dialogue["rank"], epochs=2.0, beta=0.5, optimizer=rate(), **COMMON),
        "ppo": PPO(
            start="sft",
            reward=reward,
            dialogue=dataclasses.replace(dialogue["prompt"], validation=dialogue["prompt"].validation * 2),
            ppo=ppo,
            kl=KLSettings(target=3.0),
            mix=text,
            mix_length=32,
            train=TrainSettings(steps=4),
            optimizer=rate(schedule=ScheduleSettings(warmup=2)),
            **COMMON,
        ),
    }


@pytest.fixture(scope="module")
def ran(folder, stages):
    """The pipeline's workdir after a run of all stages."""
    result = lmjax.run(Pipeline("all", tuple(stages.values())), folder / "run", quiet=True)
    assert result.exit_code == 0
    return folder / "run"


def last(folder, name):
    return [line[name] for line in read_metrics(folder) if name in line][-1]


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
    lines = [line for line in read_metrics(ran / "dpo") if "loss" in line]
    assert abs(lines[0]["margin"]) < 1e-5  # no answer is above another before the first update
    assert np.log(2) * 2 / 3 < lines[0]["loss"] < np.log(2)  # of three pairs, all or two are ordered
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert last(ran / "dpo", "validation_accuracy") > 0.8


def test_ppo_starts_each_iteration_at_its_own_policy_and_logs_what_it_must(ran):
    lines = [line for line in read_metrics(ran / "ppo") if "reward" in line]
    assert len(lines) == 4
    for line in lines:
        assert abs(line["first_update_kl"]) < 1e-5
        assert line["sampler_gap"] < 1e-5
    assert abs(lines[0]["kl"]) < 1e-5  # the reference is where it starts
    wanted = {"kl_k1", "kl_k2", "kl_k3", "entropy", "ratio", "ratio_variance", "clip_fraction", "value_explained"}
    wanted |= {"response_length", "finished", "kl_coefficient", "mix_cross_entropy", "policy_loss", "value_loss"}
    assert wanted <= lines[-1].keys()
    samples = [line for line in read_metrics(ran / "ppo") if "sample" in line]
    assert len(samples) == 12 and samples[0]["prompt"].startswith("User: ") and "sample_reward" in samples[0]


def test_a_policy_is_evaluated_before_it_learns_and_by_the_known_reward(ran):
    lines = [line for line in read_metrics(ran / "ppo") if "validation_reward" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert abs(lines[0]["validation_kl"]) < 1e-5 < abs(lines[-1]["validation_kl"])
    assert all({"validation_gold", "validation_length", "validation_finished"} <= line.keys() for line in lines)
    assert [line["step"] for line in read_metrics(ran / "ppo") if "gold" in line] == [1, 2, 3, 4]
    for line in (line for line in read_metrics(ran / "ppo") if "sample" in line):
        assert line["sample_gold"] == line["sample"].count("a")


def test_every_stage_and_the_pipeline_have_a_report(ran, stages):
    page = (ran / "report.html").read_text()
    assert f"<b>Done: </b>{len(stages)} of {len(stages)} stages." in page
    assert "Gold reward over KL: ppo from" in page and "Calibration of pairs" in page
    for name in stages:
        assert "<b>Done: </b>" in (ran / name / "report.html").read_text()


def test_resuming_in_the_middle_of_ppo_is_bitwise(ran, folder, stages, monkeypatch):
    part = folder / "resumed"
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


def test_the_score_of_each_answer_in_a_file_is_printed(ran, folder, capsys):
    assert main(["score", str(ran / "reward"), str(folder / "ranks.jsonl"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 48 and [row["answer"] for row in rows[:3]] == ["aa", "a", "zzz"]
    assert rows[0]["prompt"] == "User: a\nAssistant:"
    scores = np.array([row["score"] for row in rows]).reshape(16, 3)
    assert scores[:, 0].mean() == pytest.approx(0.0, abs=1e-4)  # as training left it
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    assert main(["score", str(ran / "sft"), str(folder / "ranks.jsonl")]) == 2
    assert "expected a reward model" in capsys.readouterr().err


def test_a_python_function_may_give_the_reward(ran, folder, scores, stages, lowered):
    def made(function, gold="letters", **changes):
        ppo = PPOSettings(response_tokens=6, **changes)
        reward = RewardSettings(source=f"{scores}:{function}", known_reward=f"{scores}:{gold}")
        return dataclasses.replace(
            stages["ppo"],
            reward=reward,
            ppo=ppo,
            kl=KLSettings(),
            mix=(),
            train=TrainSettings(steps=3),
            optimizer=rate(),
            start=str(ran / "sft"),
        )

    result = lmjax.run(made("letters", baseline="group", group=2), folder / "function", quiet=True)
    lines = [line for line in read_metrics(folder / "function") if "reward" in line]
    assert result.summary["steps"] == len(lines) == 3
    assert all(line["gold"] == pytest.approx(line["reward"]) for line in lines)  # it is the same function
    assert [lowered.count(f"jit({phase})") for phase in ("roll", "learn", "divergence")] == [1, 1, 1]
    assert [line["kl"] for line in lines] == [line["kl_k3"] for line in lines]  # what GRPO penalises
    with pytest.raises(UserError, match=r"scores\.py:broken': the score of a response is nan: expected a finite"):
        lmjax.run(made("broken", baseline="value_head"), folder / "nan", quiet=True)
    with pytest.raises(UserError, match=r"expected 8 scores, one per response, got an array of shape \(1,\)"):
        lmjax.run(made("short", baseline="value_head"), folder / "short", quiet=True)
    with pytest.raises(UserError, match="has no function 'other'; its functions: letters, broken, short"):
        lmjax.run(made("other", baseline="value_head"), folder / "other", quiet=True)
    with pytest.raises(UserError, match=r"reward\.known_reward = '.*:short': expected 8 scores, one per response"):
        lmjax.run(made("letters", gold="short", baseline="value_head"), folder / "gold", quiet=True)


def test_what_does_not_fit_together_is_refused_before_anything_is_computed(ran, folder, stages):
    with pytest.raises(UserError, match="at most the policy's context of 48; shorten prompts or responses"):
        longer = dataclasses.replace(stages["ppo"], ppo=dataclasses.replace(stages["ppo"].ppo, response_tokens=17))
        lmjax.run(longer, ran / "longer", quiet=True)
    with pytest.raises(UserError, match=r"reward\.source = 'sft': expected a reward model"):
        wrong = dataclasses.replace(stages["ppo"], reward=RewardSettings(source="sft"))
        lmjax.run(wrong, ran / "wrong", quiet=True)
    with pytest.raises(UserError, match=r"start = 'nowhere': .*no checkpoint"):
        lmjax.run(dataclasses.replace(stages["sft"], start="nowhere"), folder / "none", quiet=True)
    too_long = "dialogue.sequence_length = 64: expected at most the model's context of 48; shorten the rows"
    for name in ("sft", "reward", "dpo"):
        dialogue = dataclasses.replace(stages[name].dialogue, sequence_length=64)
        with pytest.raises(UserError, match=too_long):
            lmjax.run(dataclasses.replace(stages[name], dialogue=dialogue), ran / f"long-{name}", quiet=True)
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
    recipe = dataclasses.replace(stages["sft"], **changes, epochs=None, train=TrainSettings(steps=6))
    assert recipe.sources()["reward_model"] == "reward"
    lmjax.run(recipe, ran / "judged", quiet=True)
    rewards = {x["step"]: x["validation_reward"] for x in read_metrics(ran / "judged") if "validation_reward" in x}
    assert list(rewards) == [2, 4, 6] and len(set(scored)) == 3 and max(map(abs, scored)) < 50
    assert rewards[4] == pytest.approx(scored[1] + 100.0)
    assert lmjax.load(ran / "judged").step == 4
    with pytest.raises(UserError, match=r"reward_model = 'sft': expected a reward model"):
        lmjax.run(dataclasses.replace(recipe, reward_model="sft"), ran / "unjudged", quiet=True)
    with pytest.raises(UserError, match=r"where a reward model reads them; shorten either"):
        longer = dataclasses.replace(recipe, evaluation=EvaluationSettings(sample_tokens=17))
        lmjax.run(longer, ran / "long", quiet=True)


def test_comparisons_are_ranked_by_the_known_reward_and_train_the_next_reward_model(ran, scores, stages, dialogue):
    prompts = dataclasses.replace(dialogue["prompt"], batch_size=24)  # more than the 16 prompts
    recipe = Compare(
        start="sft", dialogue=prompts, known_reward=f"{scores}:letters", reward_model="reward", response_tokens=8
    )
    recipe = dataclasses.replace(recipe, answers=8)
    summary = lmjax.run(recipe, ran / "compare", quiet=True).summary
    rows = [json.loads(line) for line in (ran / "compare" / "comparisons.jsonl").read_text().splitlines()]
    assert len(rows) == summary["comparisons"] == 16 - summary["left_out"] > 2
    for row in rows:
        assert row["gold"] == [answer.count("a") for answer in row["answers"]]
        better = np.subtract.outer(row["gold"], row["gold"]) > 0
        np.testing.assert_array_equal(np.subtract.outer(row["ranks"], row["ranks"]) < 0, better)
    assert [row["n"] for row in summary["best_of"]] == [1, 2, 4, 8]
    assert summary["best_of"][0]["gold"] == pytest.approx(summary["gold"])
    proxies = [row["proxy"] for row in summary["best_of"]]
    assert proxies == sorted(proxies) and proxies[-1] > proxies[0]
    source = DialogueSourceSettings(path="compare/comparisons.jsonl")
    again = dataclasses.replace(dialogue["rank"], train=(source,), validation=(), most_answers=8)
    changes = {"name": "again", "dialogue": again, "epochs": None}
    result = lmjax.run(
        dataclasses.replace(stages["reward"], train=TrainSettings(steps=2), **changes), ran / "again", quiet=True
    )
    assert result.summary["steps"] == 2
    made_from = json.loads((ran / "again" / "origins.json").read_text())
    assert {"sft", "compare", "compare/comparisons.jsonl"} <= set(made_from)


@pytest.mark.slow
def test_comparisons_of_the_policy_train_the_next_reward_model_and_policy(folder, ran, scores, stages, dialogue):
    asked = Compare(
        name="compare-2", start="ppo", dialogue=dialogue["prompt"], known_reward=f"{scores}:letters", answers=8
    )
    asked = dataclasses.replace(asked, response_tokens=8)
    ranked = dataclasses.replace(
        dialogue["rank"], train=(DialogueSourceSettings("compare-2/comparisons.jsonl"),), validation=(), most_answers=8
    )
    short = {"epochs": None, "train": TrainSettings(steps=2)}
    judge = dataclasses.replace(stages["reward"], name="reward-2", dialogue=ranked, **short)
    reward = dataclasses.replace(stages["ppo"].reward, source="reward-2")
    again = dataclasses.replace(stages["ppo"], name="ppo-2", start="ppo", reference="sft", reward=reward, **short)
    result = lmjax.run(Pipeline("twice", (*stages.values(), asked, judge, again)), ran, quiet=True)
    assert list(result.summary) == ["compare-2", "reward-2", "ppo-2"]  # the first round is done
    began = next(line["validation_kl"] for line in read_metrics(ran / "ppo-2") if "validation_kl" in line)
    assert began > 0.05  # from sft; from ppo, where it starts, it would be 0
    unlike = dataclasses.replace(again, name="unlike", reference=str(folder / "wide"))
    wide = dataclasses.replace(stages["base"], model=dataclasses.replace(stages["base"].model, width=32))
    lmjax.run(wide, folder / "wide", quiet=True)
    with pytest.raises(UserError, match=r"reference = .*: expected a model of the policy's shape \(model\.width 16\)"):
        lmjax.run(unlike, ran / "unlike", quiet=True)


def test_interrupted_comparisons_go_on_behind_the_batches_that_were_answered(ran, scores, dialogue, monkeypatch):
    prompts = dataclasses.replace(dialogue["prompt"], batch_size=8)
    recipe = Compare(
        start="sft", dialogue=prompts, known_reward=f"{scores}:letters", reward_model="reward", response_tokens=8
    )
    whole = lmjax.run(dataclasses.replace(recipe, name="whole"), ran / "whole", quiet=True).summary
    keep, sampled = comparing._Answered.keep, []

    def killed_in_the_second(answered, found):
        keep(answered, found)
        sampled.append(found)
        if len(sampled) == 2:
            path = answered._path
            path.write_text(path.read_text()[:-5])  # in the middle of its line
            raise KeyboardInterrupt

    monkeypatch.setattr(comparing._Answered, "keep", killed_in_the_second)
    cut = dataclasses.replace(recipe, name="cut")
    with pytest.raises(KeyboardInterrupt):
        lmjax.run(cut, ran / "cut", quiet=True)
    assert lmjax.run(cut, ran / "cut", quiet=True).summary == whole
    assert len(sampled) == 3 and sampled[1] == sampled[2]  # the second once more, the first not
    a, b = ((ran / name / "comparisons.jsonl").read_text() for name in ("whole", "cut"))
    assert a == b and not (ran / "cut" / "answered.jsonl").exists()


def test_an_unfinished_answer_pays_the_penalty_when_the_best_of_n_is_chosen(ran, scores, dialogue, monkeypatch):
    """Without it a reward model that likes answers cut off in the middle is given them. What is told is the score."""
    shared = {
        "start": "sft",
        "dialogue": dialogue["prompt"],
        "known_reward": f"{scores}:letters",
        "reward_model": "reward",
    }
    recipe = Compare(**shared, answers=8, response_tokens=8, noise=0.1)
    all_lines, written = [], comparing._written
    monkeypatch.setattr(comparing, "_written", lambda lines, ranks: all_lines.append(lines) or written(lines, ranks))
    best = []
    for penalty in (0.0, 1000.0):
        own = dataclasses.replace(recipe, name=f"penalty-{penalty:.0f}", no_eos_penalty=penalty)
        best.append(lmjax.run(own, ran / own.name, quiet=True).summary["best_of"])
        finished, proxy = (np.array([values[name] for _, _, values in all_lines[-1]]) for name in ("finished", "proxy"))
        assert 0.02 < finished.mean() < 0.98 and finished.any(axis=1).any()
        chosen = np.argmax(np.where(finished, proxy, proxy - penalty), axis=1)
        expected = np.take_along_axis(proxy, chosen[:, None], axis=1).mean()
        assert best[-1][-1]["proxy"] == pytest.approx(expected, rel=1e-5)
    assert best[0][0] == pytest.approx(best[1][0]) and best[0][-1]["proxy"] > best[1][-1]["proxy"]
    kept = [json.loads(line) for line in (ran / "penalty-0" / "comparisons.jsonl").read_text().splitlines()]
    assert all(len(row["finished"]) == len(row["proxy"]) == len(row["answers"]) for row in kept)
    with pytest.raises(UserError, match=r"no_eos_penalty = -1.0: expected 0 or more"):
        dataclasses.replace(recipe, no_eos_penalty=-1.0)
