"""The programs that are planned: they are those that run, they allocate nothing, and their FLOPs can be worked out."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.parallel.mesh import AXES, make_mesh
from lmjax.plan.planner import chosen
from lmjax.plan.work import Step, forward_flops, work_of
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    EvaluationSettings,
    MeshSettings,
    ModelSettings,
    PlanSettings,
    SourceSettings,
    TrainSettings,
)
from lmjax.settings.conversations import DialogueSettings, DialogueSourceSettings, PPOSettings, RewardSettings
from lmjax.settings.recipe_files import DPO, PPO, SFT, Compare, Pipeline, Pretrain, RewardModel, load_recipe
from lmjax.stages import dpo, ppo, sft, steps
from lmjax.stages import reward_model as reward
from lmjax.stages.initial import Start
from lmjax.stages.train_stage import Outcome
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest

ENTRIES = ByteTokenizer.eos_id + 1
SMALL = ModelSettings(layers=2, width=16, context=64, vocab_size=ENTRIES, attention=AttentionSettings(heads=2))
LARGE = dataclasses.replace(SMALL, layers=3, width=32)
ANSWERS = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Demonstrations, rankings, prompts and text, by name."""
    folder = tmp_path_factory.mktemp("data")
    rows = {
        "sft": {"prompt": "a", "answer": "aa"},
        "rank": {"prompt": "a", "answers": ["aa", "a", "z"], "ranks": [0, 1, 2]},
        "prompt": {"prompt": "a"},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 8)
    (folder / "text.txt").write_text("some text\n" * 400)
    return folder


@pytest.fixture(scope="module")
def pipeline(files):
    """A pipeline of all stages, two models wide, none of which has run."""

    def parts(name, length):
        sources = (DialogueSourceSettings(path=str(files / f"{name}.jsonl")),)
        dialogue = DialogueSettings(train=sources, sequence_length=length, batch_size=8, most_answers=ANSWERS)
        mesh, train = MeshSettings(data=2, fsdp=4), TrainSettings(steps=7)
        return {"dialogue": dialogue, "mesh": mesh, "train": train, "epochs": None}

    data = DataSettings(sequence_length=32, batch_size=8)
    base = Pretrain(
        name="base",
        model=SMALL,
        data=data,
        evaluation=EvaluationSettings(sample_tokens=8),
        mesh=MeshSettings(data=2, fsdp=4),
    )
    tuned = SFT(start="base", dropout=0.1, **parts("sft", 32))
    ranked = RewardModel(start="elsewhere", model=LARGE, **parts("rank", 32))
    direct = DPO(start="sft", **parts("rank", 32))
    learned = PPO(
        start="sft",
        reward=RewardSettings(source="reward"),
        ppo=PPOSettings(response_tokens=16, group=2, epochs=2, average=0.5, mix_coefficient=2.0, mix_rows=2),
        mix=(SourceSettings(kind="text", path=str(files / "text.txt")),),
        mix_length=24,
        plan=PlanSettings(topology="v5e-8"),
        **parts("prompt", 16),
    )
    compared = Compare(start="sft", gold="nobody:knows", dialogue=parts("prompt", 16)["dialogue"])
    return Pipeline("all", (base, tuned, compared, ranked, direct, learned))


@pytest.fixture
def as_it_runs(monkeypatch, tmp_path):
    """A function from a stage and its models to the text of the step that its own code makes, lowered and not run."""

    def run(stage, module, settings, judge):
        def start_of(of, field):
            return Start(None, None, of, ByteTokenizer(), tmp_path)

        made = []

        def compile_step(step, mesh, *arguments, compute):
            assert compute == stage.compute
            made.append((compiled(step, mesh, *arguments, compute=compute), arguments))
            return made[-1][0]

        def train(training, *_):
            (step, arguments), batch = made[-1], training.batch_at(0)
            made.append(step.lower(*arguments, batch).as_text())

        compiled = steps.compile_step
        monkeypatch.setattr(steps, "compile_step", compile_step)
        for name in ("language_model", "reward_model"):  # what a checkpoint would give is not needed: its shape is
            monkeypatch.setattr(Start, name, lambda self, abstract: abstract)
        monkeypatch.setattr(module, "open_start", lambda *_: start_of(settings, "start"))
        monkeypatch.setattr(module, "open_reward_model", lambda *_: start_of(judge, "reward.source"), raising=False)
        monkeypatch.setattr(module, "train", train)
        run_stage = getattr(module, module.__name__.rpartition(".")[2])
        outcome = run_stage(stage, tmp_path, StopRequest(), ProgressDisplay(silent=True))
        assert isinstance(outcome, Outcome)
        return made[-1]

    return run


@pytest.mark.parametrize(("name", "module"), [("sft", sft), ("reward", reward), ("dpo", dpo), ("ppo", ppo)])
def test_what_is_planned_is_what_runs(pipeline, as_it_runs, name, module):
    recipe, step = chosen(pipeline, name)
    planned = work_of(recipe, step).lower(make_mesh(recipe.mesh)).as_text()
    stage = next(each for each in pipeline.stages if each.name == name)
    assert planned == as_it_runs(stage, module, LARGE if name == "reward" else SMALL, LARGE)


@pytest.mark.parametrize("name", ["base", "sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("kind", ["train", "eval", "generate"])
def test_programs_are_made_of_shapes_alone(pipeline, name, kind):
    recipe, step = chosen(pipeline, name, kind)
    if name != "base" and kind != "train":
        with pytest.raises(UserError, match="--step"):
            work_of(recipe, step)
        return
    before = sum(array.nbytes for array in jax.live_arrays())
    work = work_of(recipe, step)
    mesh = make_mesh(recipe.mesh)
    work.check(dict(mesh.shape))
    text = work.lower(mesh).as_text()
    assert "sdy.mesh" in text or "mhlo.num_partitions = 8" in text
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 4 * SMALL.width * ENTRIES


@pytest.mark.parametrize("name", ["base", "sft", "reward", "dpo", "ppo"])
def test_a_mesh_that_does_not_divide_the_rows_is_refused_by_the_field_that_the_stage_has(pipeline, name):
    section = "data" if name == "base" else "dialogue"
    message = f"^mesh.data = 3: expected a divisor of {section}.batch_size = 8; use {section}.batch_size = 6 or 9$"
    with pytest.raises(UserError, match=message):
        work_of(*chosen(pipeline, name)).check(dict.fromkeys(AXES, 1) | {"data": 3})


def test_models_come_from_the_stages_before(pipeline):
    assert chosen(pipeline, "sft")[0].model == SMALL
    assert chosen(pipeline, "dpo")[0].model == SMALL  # of what its start starts from
    assert chosen(pipeline, "ppo")[1].judge == LARGE
    assert chosen(pipeline)[0].name == "ppo"  # the one that says for which slice
    assert chosen(Pipeline("two", pipeline.stages[:2]))[0].name == "base"


def test_what_cannot_be_planned_says_why(pipeline):
    with pytest.raises(UserError, match=r"no such stage in 'all'; did you mean 'reward'\?"):
        chosen(pipeline, "rewrad")
    with pytest.raises(UserError, match="trains nothing; plan one of base, sft, reward, dpo, ppo"):
        chosen(pipeline, "compare")
    alone = dataclasses.replace(chosen(pipeline, "ppo")[0], model=None)
    with pytest.raises(UserError, match=r"reward.source = 'reward': expected a reward model whose settings are known"):
        work_of(*chosen(alone))
    with pytest.raises(UserError, match=r"ppo.model: expected the settings of what 'sft' holds"):
        work_of(chosen(alone)[0], Step("train", LARGE))


def test_flops_of_training_are_the_count_s_and_a_forward_pass_is_a_third(pipeline):
    base = pipeline.stages[0]
    tokens = 8 * 32
    training, validation = work_of(base), work_of(base, Step("eval"))
    assert training.flops == pytest.approx(tokens * count(SMALL, 32).flops_per_token)
    assert validation.flops == pytest.approx(training.flops / 3)
    assert training.scores == pytest.approx(tokens * 12 * 2 * 8 * 2 * 16.5)  # heads, head_dim, layers, keys on average


def test_flops_of_sampling_leave_the_head_out_of_the_prompt(pipeline):
    base = dataclasses.replace(pipeline.stages[0], evaluation=EvaluationSettings(sample_tokens=8))
    whole, sampled = work_of(base, Step("eval")), work_of(base, Step("generate"))
    assert sampled.tokens == 8 * 8
    assert whole.flops - sampled.flops == pytest.approx(8 * 24 * 2 * ENTRIES * 16)


def test_flops_of_the_stages_follow_from_passes(pipeline):
    tokens, small, large = 8 * ANSWERS * 32, forward_flops(SMALL, 32), forward_flops(LARGE, 32)
    direct, ranked = work_of(*chosen(pipeline, "dpo")), work_of(*chosen(pipeline, "reward"))
    assert direct.flops == pytest.approx(4 * tokens * (small.body + small.head + small.scores))
    assert ranked.flops == pytest.approx(3 * tokens * (large.body + large.scores))  # a scalar head is next to nothing


def test_flops_of_an_iteration_are_summed_over_its_phases(pipeline):
    small, large, mixed = forward_flops(SMALL, 32), forward_flops(LARGE, 32), forward_flops(SMALL, 24)
    episodes, row, new = 16, 32, 16
    once = episodes * (row * (small.body + small.scores) + new * small.head)  # a policy reads, or writes, the responses
    valued = episodes * row * (large.body + large.scores)
    mix = 3 * episodes * 2 * 2 * 24 * (mixed.body + mixed.head + mixed.scores)
    passes = {"sample": once, "old and reference": 2 * once, "reward and values": 2 * valued}
    passes |= {"two epochs": 2 * 3 * (once + valued), "pretraining": mix}
    work = work_of(*chosen(pipeline, "ppo"))
    assert work.flops == pytest.approx(sum(passes.values()))
    assert (work.rows, work.length, work.tokens) == (episodes, row, episodes * row)


def test_the_benchmark_is_instructgpt_s():
    benchmarks = Path(__file__).parents[2] / "experiments" / "benchmarks"
    recipe, step = chosen(load_recipe(str(benchmarks / "plan_ppo_1300m_6b.py")))
    assert isinstance(recipe, PPO) and recipe.model is not None and step.judge is not None
    assert count(recipe.model).parameters == 1_315_723_264 and count(step.judge).parameters == 6_658_404_352
    assert (recipe.dialogue.batch_size, recipe.ppo.minibatches, recipe.ppo.mix_rows) == (512, 8, 8)
    assert recipe.ppo.mix_coefficient == 27.8 and recipe.plan.topology
