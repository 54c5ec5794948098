"""Comparisons of a policy's answers: ranked by the known reward, resumed where they stopped, best of n, trained on."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.settings import Compare, DialogueSourceSettings, Pipeline
from lmjax.stages import compare as comparing
from tests.running import lines_of
from tests.tiny import changed

pytestmark = pytest.mark.xdist_group("rlhf stages")  # one process runs the pipeline that they share


def compared(files, **changes):
    """Answers of `sft`, ranked by the known reward and scored by `reward`."""
    known = {"known_reward": f"{files.scores}:letters", "reward_model": "reward"}
    recipe = Compare(start="sft", dialogue=files.dialogue("prompts"), response_tokens=8, **known)
    return changed(recipe, **changes)


def test_comparisons_are_ranked_by_the_known_reward_and_train_the_next_reward_model(ran, files, stages):
    recipe = compared(files, dialogue__batch_size=24, answers=8)  # more than the 16 prompts
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
    ranked = files.dialogue("rankings", train=(source,), validation=(), most_answers=8)
    recipe = changed(stages["reward"], name="again", dialogue=ranked, epochs=None, train__steps=2)
    result = lmjax.run(recipe, ran / "again", quiet=True)
    assert result.summary["steps"] == 2
    made_from = json.loads((ran / "again" / "origins.json").read_text())
    assert {"sft", "compare", "compare/comparisons.jsonl"} <= set(made_from)


@pytest.mark.slow
def test_comparisons_of_the_policy_train_the_next_reward_model_and_policy(files, ran, stages):
    asked = compared(files, name="compare-2", start="ppo", reward_model="", answers=8)
    source = DialogueSourceSettings("compare-2/comparisons.jsonl")
    ranked = files.dialogue("rankings", train=(source,), validation=(), most_answers=8)
    short = {"epochs": None, "train__steps": 2}
    judge = changed(stages["reward"], name="reward-2", dialogue=ranked, **short)
    again = changed(stages["ppo"], name="ppo-2", start="ppo", reference="sft", reward__source="reward-2", **short)
    result = lmjax.run(Pipeline("twice", (*stages.values(), asked, judge, again)), ran, quiet=True)
    assert list(result.summary) == ["compare-2", "reward-2", "ppo-2"]  # the first round is done
    began = lines_of(ran / "ppo-2", "validation_kl")[0]["validation_kl"]
    assert began > 0.05  # from sft; from ppo, where it starts, it would be 0
    unlike = changed(again, name="unlike", reference=str(files.folder / "wide"))
    lmjax.run(changed(stages["base"], model__width=32), files.folder / "wide", quiet=True)
    with pytest.raises(UserError, match=r"reference = .*: expected a model of the policy's shape \(model\.width 16\)"):
        lmjax.run(unlike, ran / "unlike", quiet=True)


def test_interrupted_comparisons_go_on_behind_the_batches_that_were_answered(ran, files, monkeypatch):
    recipe = compared(files)
    whole = lmjax.run(changed(recipe, name="whole"), ran / "whole", quiet=True).summary
    keep, sampled = comparing._Answered.keep, []

    def killed_in_the_second(answered, found):
        keep(answered, found)
        sampled.append(found)
        if len(sampled) == 2:
            path = answered._path
            path.write_text(path.read_text()[:-5])  # in the middle of its line
            raise KeyboardInterrupt

    monkeypatch.setattr(comparing._Answered, "keep", killed_in_the_second)
    cut = changed(recipe, name="cut")
    with pytest.raises(KeyboardInterrupt):
        lmjax.run(cut, ran / "cut", quiet=True)
    assert lmjax.run(cut, ran / "cut", quiet=True).summary == whole
    assert len(sampled) == 3 and sampled[1] == sampled[2]  # the second once more, the first not
    a, b = ((ran / name / "comparisons.jsonl").read_text() for name in ("whole", "cut"))
    assert a == b and not (ran / "cut" / "answered.jsonl").exists()


def test_an_unfinished_answer_pays_the_penalty_when_the_best_of_n_is_chosen(ran, files, monkeypatch):
    """Without it a reward model that likes answers cut off in the middle is given them. What is told is the score."""
    recipe = compared(files, answers=8, noise=0.1)
    all_lines, written = [], comparing._written
    monkeypatch.setattr(comparing, "_written", lambda lines, ranks: all_lines.append(lines) or written(lines, ranks))
    best = []
    for penalty in (0.0, 1000.0):
        own = changed(recipe, name=f"penalty-{penalty:.0f}", no_eos_penalty=penalty)
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
        changed(recipe, no_eos_penalty=-1.0)
