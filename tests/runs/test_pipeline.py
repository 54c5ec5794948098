"""What a pipeline does with each stage, from what its folders hold: nothing is trained here."""

import json
from pathlib import Path

import pytest

import lmjax
from lmjax import cli
from lmjax.commands.command import overridden_recipe
from lmjax.errors import UserError
from lmjax.runs.pipeline import plan_stages, run_stages
from lmjax.runs.provenance import claim_provenance
from lmjax.settings import (
    PPO,
    SFT,
    CheckpointSettings,
    Compare,
    DialogueSettings,
    DialogueSourceSettings,
    Pipeline,
    Pretrain,
    RewardModel,
    RewardSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import from_json, to_json

SECOND = RewardSettings(source="reward-2")
HELD_OUT = DialogueSettings(validation=(DialogueSourceSettings("a.jsonl"),))
LOSS = CheckpointSettings(keep_best=1, select_best=True)
REWARD = CheckpointSettings(keep_best=1, select_best=True, best_by="validation_reward")


def stages(**changes):
    made = {
        "pretrain": Pretrain(),
        "sft": SFT(start="pretrain"),
        "reward": RewardModel(start="sft"),
        "ppo": PPO(start="sft", reward=RewardSettings(source="reward")),
    }
    return Pipeline("p", tuple((made | changes).values()))


def finish(folder, stage, seconds=1):
    own = folder / stage.name
    own.mkdir(parents=True, exist_ok=True)
    (own / "recipe.json").write_text(to_json(stage))
    claim_provenance(stage, own, force=True)
    steps = 1 if isinstance(stage, Compare) else stage.train.steps
    (own / "checkpoints" / stage.name / "1").mkdir(parents=True, exist_ok=True)  # its recipe is in recipe.json alone
    (own / "summary.json").write_text(json.dumps({"steps": steps, "loss": seconds}))


def actions(folder, pipeline, **options):
    return {plan.stage.name: plan.action for plan in plan_stages(pipeline, folder, **options)}


@pytest.fixture
def finished(tmp_path):
    for stage in stages().stages:
        finish(tmp_path, stage)
    return tmp_path


def test_everything_runs_in_an_empty_folder_and_nothing_in_a_finished_one(tmp_path, finished):
    assert set(actions(tmp_path / "new", stages()).values()) == {"run"}
    assert set(actions(finished, stages()).values()) == {"skip"}


def test_an_interrupted_stage_is_resumed(finished):
    (finished / "ppo" / "summary.json").unlink()
    assert actions(finished, stages()) == {"pretrain": "skip", "sft": "skip", "reward": "skip", "ppo": "run"}


def test_a_changed_stage_runs_anew_with_all_that_goes_on_from_it_and_says_why(finished):
    changed = stages(reward=RewardModel(start="sft", margin=0.5))
    plans = plan_stages(changed, finished)
    assert [plan.action for plan in plans] == ["skip", "skip", "anew", "anew"]
    assert plans[2].reason == "runs anew, because its recipe changed: margin: 0.0 -> 0.5"
    assert plans[3].reason == "runs anew, because it uses reward"
    everything = stages(pretrain=Pretrain(train=TrainSettings(steps=7)))
    assert set(actions(finished, everything).values()) == {"anew"}


def test_a_stage_goes_on_from_the_files_that_it_reads_too(finished):
    read = DialogueSettings(train=(DialogueSourceSettings(path="compare/comparisons.jsonl"),))
    made = stages().stages

    def iterated(noise):
        comparisons = Compare(start="ppo", known_reward="gold.py:score", noise=noise)
        again = (
            RewardModel(name="reward-2", start="sft", dialogue=read),
            PPO(name="ppo-2", start="ppo", reward=SECOND),
        )
        return Pipeline("p", (*made, comparisons, *again))

    for stage in iterated(0.1).stages:
        finish(finished, stage)
    assert set(actions(finished, iterated(0.1)).values()) == {"skip"}
    plans = plan_stages(iterated(0.2), finished)
    assert [plan.action for plan in plans] == ["skip"] * 4 + ["anew"] * 3
    assert plans[5].reason == "runs anew, because it uses compare"
    with pytest.raises(UserError, match=r"^reward\.dialogue\.train\[0\]\.path = 'compare': expected a stage before"):
        Pipeline(
            "p",
            (*made[:2], RewardModel(start="sft", dialogue=read), Compare(start="sft", known_reward="gold.py:score")),
        )


def test_one_stage_alone_needs_what_it_goes_on_from(tmp_path, finished):
    assert actions(finished, stages(), only="reward") == dict.fromkeys(("pretrain", "sft", "reward", "ppo"), "skip")
    finish(tmp_path / "part", stages().stages[0])
    assert actions(tmp_path / "part", stages(), only="sft")["sft"] == "run"
    with pytest.raises(UserError, match=r"ppo\.start = 'sft': expected a finished stage; run 'sft' first"):
        plan_stages(stages(), tmp_path / "part", only="ppo")
    with pytest.raises(UserError, match=r"--only sfy: no such stage in 'p'; did you mean 'sft'\?"):
        plan_stages(stages(), finished, only="sfy")


def test_from_a_stage_on_everything_runs_anew(finished):
    assert actions(finished, stages(), start_from="reward") == {
        "pretrain": "skip",
        "sft": "skip",
        "reward": "anew",
        "ppo": "anew",
    }


def test_a_stage_knows_when_what_it_went_on_from_was_trained_again(finished):
    finish(finished, stages().stages[1], seconds=2)  # as --only sft leaves it, with another result
    plans = plan_stages(stages(), finished)
    assert [plan.action for plan in plans] == ["skip", "skip", "anew", "anew"]
    assert plans[2].reason == "runs anew, because sft was trained again"


def test_an_interrupted_stage_whose_start_was_trained_again_runs_anew(finished):
    (finished / "ppo" / "summary.json").unlink()
    finish(finished, stages().stages[1], seconds=2)
    (finished / "reward" / "summary.json").unlink()
    finish(finished, stages().stages[2])  # it goes on from the new sft
    plans = plan_stages(stages(), finished)
    assert [plan.action for plan in plans] == ["skip", "skip", "skip", "anew"]
    assert plans[3].reason == "runs anew, because sft was trained again"


def test_a_stage_knows_when_a_file_that_it_reads_changed(tmp_path):
    data, function = tmp_path / "data.jsonl", tmp_path / "gold.py"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    function.write_text("def score(prompts, responses): ...\n")
    read = DialogueSettings(train=(DialogueSourceSettings(path=str(data)),))
    sft = SFT(start="pretrain", dialogue=read)
    judged = PPO(start="sft", reward=RewardSettings(source=f"{function}:score"))
    pipeline = Pipeline("p", (Pretrain(), sft, judged))
    for stage in pipeline.stages:
        finish(tmp_path / "run", stage)
    assert set(actions(tmp_path / "run", pipeline).values()) == {"skip"}
    function.write_text("def score(prompts, responses): return [1.0] * len(responses)\n")
    plans = plan_stages(pipeline, tmp_path / "run")
    assert [plan.action for plan in plans] == ["skip", "skip", "anew"]
    assert plans[2].reason == f"runs anew, because {function} changed"
    data.write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(UserError, match=r"data\.jsonl changed since this run began; choose another --workdir"):
        claim_provenance(sft, tmp_path / "run" / "sft", force=False)
    assert [plan.action for plan in plan_stages(pipeline, tmp_path / "run")] == ["skip", "anew", "anew"]
    data.unlink()  # what is finished does not need it any more
    assert [plan.action for plan in plan_stages(pipeline, tmp_path / "run")] == ["skip", "skip", "anew"]


LONG = DialogueSettings(train=(DialogueSourceSettings("a.jsonl"),), sequence_length=2048)
NO_FILE = DialogueSettings(train=(DialogueSourceSettings("nothing.jsonl"),))
NO_FUNCTION = RewardSettings(source="lmjax.rl.known_rewards:nothing")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            SFT(start="pretrain", dialogue=NO_FILE),
            r"^sft\.dialogue\.train\[0\]\.path = 'nothing\.jsonl': expected a file",
        ),
        (PPO(start="pretrain", reward=NO_FUNCTION), r"stage ppo: reward\.source = .* has no function 'nothing'"),
        (
            SFT(start="pretrain", dialogue=LONG),
            r"^sft\.dialogue\.sequence_length = 2048: expected at most",
        ),
        (
            Compare(start="pretrain", known_reward="nothing.py:f"),
            r"stage compare: known_reward = .*no such file: nothing\.py",
        ),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_told_before_the_first_runs(tmp_path, monkeypatch, stage, message):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match=message):
        lmjax.run(Pipeline("p", (Pretrain(), stage)), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "pretrain").exists()


def test_what_is_replaced_is_kept_and_set_aside_before_anything_runs(finished):
    plans = plan_stages(stages(), finished, start_from="reward")
    ran = []

    def stopped(stage, own):
        ran.append((stage.name, own.exists(), (finished / "ppo").exists()))
        return False

    assert run_stages(plans, finished, stopped, lambda line: None) is False
    assert ran == [("reward", False, False)]
    assert (finished / "reward.old" / "summary.json").exists() and (finished / "ppo.old").exists()
    assert actions(finished, stages()) == {"pretrain": "skip", "sft": "skip", "reward": "run", "ppo": "run"}


def test_a_stage_cannot_start_from_one_behind_it():
    with pytest.raises(UserError, match=r"sft\.start = 'ppo': expected a stage before 'sft'; move it behind 'ppo'"):
        stages(sft=SFT(start="ppo"))
    with pytest.raises(UserError, match="stages of different names"):
        Pipeline("p", (Pretrain(), Pretrain()))


@pytest.mark.parametrize("stage", stages().stages, ids=lambda stage: stage.name)
def test_every_stage_comes_back_from_its_json(stage):
    assert from_json(to_json(stage)) == stage


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(start="sft"), r"reward\.source = '': expected a reward model or a function"),
        (lambda: SFT(dialogue=DialogueSettings(batch_size=5), train=TrainSettings(microbatches=2)), "divisor"),
        (lambda: SFT(start="sft"), "start = 'sft': expected another stage"),
        (lambda: RewardModel(label_smoothing=0.5), "label_smoothing = 0.5"),
        (lambda: SFT(start="base", checkpoint=LOSS), r"dialogue\.validation = \(\): expected at least one source"),
        (
            lambda: SFT(start="base", dialogue=HELD_OUT, checkpoint=REWARD),
            r"expected validation_loss; .* name a reward_model",
        ),
        (lambda: RewardModel(start="sft", dialogue=HELD_OUT, checkpoint=LOSS), "False for a reward model"),
        (lambda: PPO(start="sft", reward=SECOND, dialogue=HELD_OUT, checkpoint=LOSS), "expected validation_reward;"),
        (lambda: Pretrain(checkpoint=REWARD), "'validation_loss' in pretraining"),
        (lambda: CheckpointSettings(select_best=True), r"^CheckpointSettings\.keep_best = 0: expected 1 or more"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


RECIPE = """
from lmjax.settings import SFT, Pipeline, Pretrain

def recipe():
    return Pipeline("two", (Pretrain(name="base"), SFT(name="sft-1", start="base")))
"""


def parsed(path, overrides):
    options = cli.parser().parse_args(["run", str(path)])
    return overridden_recipe(options, overrides)


def test_a_field_of_a_stage_is_set_under_the_stages_name(tmp_path, capsys):
    path = tmp_path / "two.py"
    path.write_text(RECIPE)
    changed = parsed(path, ["--base.train.steps", "7", "--sft-1.epochs", "3.0"])
    assert isinstance(changed, Pipeline) and [stage.name for stage in changed.stages] == ["base", "sft-1"]
    assert (changed.stages[0].train.steps, changed.stages[1].epochs) == (7, 3.0)
    mixed = parsed(
        path, ["--train.steps", "8", "--sft-1.epochs", "4.0", "--optimizer.b1=0.5", "--base.train.seed", "3"]
    )
    first, second = mixed.stages
    assert (first.train.steps, first.optimizer.b1, first.train.seed, second.epochs) == (8, 0.5, 3, 4.0)
    assert second.train.steps == 1000, "a field without a stage's name is the first stage's alone"
    with pytest.raises(
        UserError, match=r"--sft-2\.epochs: neither a stage nor a field of the first; did you mean 'sft-1'"
    ):
        parsed(path, ["--sft-2.epochs", "4.0"])
    assert cli.main(["count", str(path), "--json"]) == 0  # of its pretraining
    assert json.loads(capsys.readouterr().out)["parameters"] > 0
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "w"), "--only", "sft"]) == 2
    assert "--only sft: no such stage in 'two'; did you mean 'sft-1'?" in capsys.readouterr().err


NAMES = ("1-pretrain", "class", "a-b", "a_b", "pretrain", "pretrain.old", "help", "train")


def test_stages_of_any_name_can_be_set_by_their_names(tmp_path, capsys):
    path = tmp_path / "odd.py"
    path.write_text(
        "from lmjax.settings import Pipeline, Pretrain\n"
        f"def recipe():\n    return Pipeline('odd', tuple(Pretrain(name=name) for name in {NAMES}))\n"
    )
    words = [word for n, name in enumerate(NAMES) for word in (f"--{name}.train.seed", str(n + 10))]
    changed = parsed(path, [*words, "--data.seed=7"])
    assert {stage.name: stage.train.seed for stage in changed.stages} == {n: i + 10 for i, n in enumerate(NAMES)}
    assert [stage.data.seed for stage in changed.stages] == [7, *[0] * 7]
    swapped = parsed(path, ["--1_pretrain.train.seed", "5", "--pretrain-old.train.seed=6"])
    assert (swapped.stages[0].train.seed, swapped.stages[5].train.seed) == (5, 6)
    assert parsed(path, []).stages[0].train.seed == 0
    assert cli.main(["run", str(path), "--help"]) == 0
    said = capsys.readouterr().out
    for name in ("1-pretrain", "class", "a-b", "pretrain", "pretrain-old", "help", "train"):
        assert f"--{name}.train.steps" in said
    with pytest.raises(
        UserError, match=r"--class\.train\.stesp: no such field; did you mean --class\.train\.steps INT"
    ):
        parsed(path, ["--class.train.stesp", "5"])
    with pytest.raises(UserError, match=r"--klass\.train\.seed: neither a stage nor a field of the first; .*'class'"):
        parsed(path, ["--klass.train.seed", "5"])
