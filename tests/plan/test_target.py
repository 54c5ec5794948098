"""The programs that are planned: they are those that run, they allocate nothing, and their FLOPs can be worked out."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from lmjax.checkpoints.initial import InitialCheckpoint
from lmjax.errors import UserError
from lmjax.model.flops import count, forward_flops
from lmjax.parallel.mesh import AXES, make_mesh
from lmjax.parallel.placement import jit_step
from lmjax.plan.planner import chosen
from lmjax.plan.target import target_of
from lmjax.settings import (
    PPO,
    AttentionSettings,
    Compare,
    DialogueSourceSettings,
    EvaluationSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    PlanSettings,
    PPOSettings,
    RewardSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import load_recipe
from lmjax.stages import ppo, train_stage
from lmjax.stages.registry import kind_of
from lmjax.stages.train_stage import Outcome
from lmjax.tasks import resolved as resolved_module
from lmjax.tasks import task
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.training.phases import phase_of
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests import tiny as recipes
from tests.tiny import dpo, pretrain, reward_model, sft, text, write_rows

ENTRIES = ByteTokenizer.eos_id + 1
SMALL = ModelSettings(layers=2, width=16, context=64, vocab_size=ENTRIES, attention=AttentionSettings(heads=2))
LARGE = dataclasses.replace(SMALL, layers=3, width=32)
ANSWERS, MESH = 3, MeshSettings(data=2, fsdp=4)


def target_in(pipeline, name, step="train"):
    """The program of the stage with this name."""
    recipe, before = chosen(pipeline, name)
    return target_of(recipe, step, before)


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
        write_rows(folder / f"{name}.jsonl", [row] * 8)
    (folder / "text.txt").write_text("some text\n" * 400)
    return folder


@pytest.fixture(scope="module")
def pipeline(files):
    """A pipeline of all stages, two models wide, none of which has run."""

    def made(kind, name, length=32, **changes):
        sources = (DialogueSourceSettings(path=str(files / f"{name}.jsonl")),)
        read = {"dialogue__sequence_length": length, "dialogue__most_answers": ANSWERS, "mesh": MESH, "start": "sft"}
        return kind(sources, epochs=None, train__steps=7, **(read | changes))

    given = {"data__sequence_length": 32, "optimizer": OptimizerSettings(), "train": TrainSettings()}
    base = pretrain(name="base", model=SMALL, mesh=MESH, evaluation__sample_tokens=8, **given)
    tuned = made(sft, "sft", start="base", dropout=0.1)
    ranked = made(reward_model, "rank", start="elsewhere", model=LARGE)
    direct = made(dpo, "rank")
    sampled = PPOSettings(response_tokens=16, group=2, epochs=2, ema_decay=0.5, ptx_coefficient=2.0, ptx_rows=2)
    mixed = {"mix": text(files / "text.txt"), "mix_length": 24, "plan": PlanSettings(topology="v5e-8")}
    learned = made(recipes.ppo, "prompt", 16, ppo=sampled, **mixed)
    compared = Compare(start="sft", known_reward="nobody:knows", dialogue=learned.dialogue)
    return Pipeline("all", (base, tuned, compared, ranked, direct, learned))


@pytest.fixture
def as_it_runs(monkeypatch, tmp_path):
    """A function from a stage and its models to the text of the step that a run of it makes, lowered and not run."""

    def run(stage, settings, scorer):
        made, texts = [], []

        def compiled(step, state, mesh, compute, *, frozen=(), batch=None):
            assert compute == stage.compute
            made.append((jit_step(step, state, mesh, compute, frozen=frozen, batch=batch), state, frozen))
            return made[-1][0]

        def train(training, *_):
            step, state, frozen = made[-1]
            texts.append(step.lower(state, *frozen, training.batch_at(0)).as_text())

        for name in ("language_model", "reward_model"):  # what a checkpoint would give is not needed: its shape is
            monkeypatch.setattr(InitialCheckpoint, name, lambda self, abstract: abstract)
        start, reward = (InitialCheckpoint(None, None, of, ByteTokenizer(), tmp_path) for of in (settings, scorer))
        monkeypatch.setattr(resolved_module, "open_initial", lambda *_: start)
        monkeypatch.setattr(resolved_module, "open_reward_model", lambda *_: reward)
        for module in (task, ppo):
            monkeypatch.setattr(module, "jit_step", compiled)
        for module in (train_stage, ppo):
            monkeypatch.setattr(module, "train", train)
        session = Session(StopRequest(), ProgressDisplay(silent=True))
        assert isinstance(kind_of(stage).train(resolve(stage, folder=tmp_path), session), Outcome)
        return texts[-1]

    return run


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_what_is_planned_is_what_runs(pipeline, as_it_runs, name):
    target = target_in(pipeline, name)
    planned = target.lower(make_mesh(target.recipe.mesh)).as_text()
    stage = next(each for each in pipeline.stages if each.name == name)
    assert planned == as_it_runs(stage, LARGE if name == "reward" else SMALL, LARGE)


def test_the_compiler_is_told_the_phases_of_an_iteration(pipeline):
    target = target_in(pipeline, "ppo")
    lowered = target.lower(make_mesh(target.recipe.mesh)).as_text(debug_info=True)
    places = re.findall(r'loc\("(jit[^"]*)"', lowered)
    assert {phase_of(place) for place in places} == {"rollout", "scoring", "reading", "updates", None}


@pytest.mark.parametrize("name", ["base", "sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("kind", ["train", "eval", "generate"])
def test_programs_are_made_of_shapes_alone(pipeline, name, kind):
    if name != "base" and kind != "train":
        with pytest.raises(UserError, match="--step"):
            target_in(pipeline, name, kind)
        return
    before = sum(array.nbytes for array in jax.live_arrays())
    target = target_in(pipeline, name, kind)
    mesh = make_mesh(target.recipe.mesh)
    target.check(dict(mesh.shape))
    text = target.lower(mesh).as_text()
    assert "sdy.mesh" in text or "mhlo.num_partitions = 8" in text
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 4 * SMALL.width * ENTRIES


@pytest.mark.parametrize("name", ["base", "sft", "reward", "dpo", "ppo"])
def test_a_mesh_that_does_not_divide_the_rows_is_refused_by_the_field_that_the_stage_has(pipeline, name):
    section = "data" if name == "base" else "dialogue"
    message = f"^mesh.data = 3: expected a divisor of {section}.batch_size = 8; use {section}.batch_size = 6 or 9$"
    with pytest.raises(UserError, match=message):
        target_in(pipeline, name).check(dict.fromkeys(AXES, 1) | {"data": 3})


def test_models_come_from_the_stages_before(pipeline):
    dropped = dataclasses.replace(SMALL, dropout=0.1, attention=dataclasses.replace(SMALL.attention, dropout=0.1))
    assert target_in(pipeline, "sft").recipe.model == dropped
    assert target_in(pipeline, "dpo").recipe.model == SMALL  # of what its start starts from
    assert target_in(pipeline, "ppo").resolved.reward_model == LARGE
    assert chosen(pipeline)[0].name == "ppo"  # the one that says for which slice
    assert chosen(Pipeline("two", pipeline.stages[:2]))[0].name == "base"


def test_what_cannot_be_planned_says_why(pipeline):
    with pytest.raises(UserError, match=r"no such stage in 'all'; did you mean 'reward'\?"):
        chosen(pipeline, "rewrad")
    with pytest.raises(UserError, match="trains nothing; plan one of base, sft, reward, dpo, ppo"):
        chosen(pipeline, "compare")
    alone = chosen(pipeline, "ppo")[0]
    known = target_of(dataclasses.replace(alone, model=SMALL))
    with pytest.raises(UserError, match=r"reward.source = 'reward': expected a reward model whose settings are known"):
        assert known.cost
    with pytest.raises(UserError, match=r"ppo.model: expected the settings of what 'sft' holds"):
        assert target_of(alone).cost


@pytest.mark.parametrize("baseline", ["group", "value"])
def test_an_iteration_with_a_python_reward_is_planned_with_its_scores_given(pipeline, baseline):
    learned = chosen(pipeline, "ppo")[0]
    sampled = dataclasses.replace(learned.ppo, baseline=baseline, epochs=1, ptx_coefficient=0.0)
    reward = RewardSettings(source="nobody:knows")  # which is not called
    recipe = dataclasses.replace(learned, model=SMALL, mix=(), ppo=sampled, reward=reward)
    target = target_of(recipe)
    episodes, row = recipe.dialogue.batch_size * 2, recipe.dialogue.sequence_length + 16
    policy = forward_flops(SMALL, row)
    reads, values = 2 + 3, 4 * (baseline == "value")  # old policy, reference and an update; no reward model reads
    expected = (1 + reads) * (row * policy.body + 16 * policy.head) + values * row * policy.body
    assert target.cost.products == pytest.approx(episodes * expected)
    program = target.build(make_mesh(recipe.mesh))
    assert program.batch["scores"].shape == (episodes,) and set(program.frozen[0]) == {"reference"}
    assert program.lower().as_text()


def test_flops_of_training_are_the_count_s_and_a_forward_pass_is_a_third(pipeline):
    base = pipeline.stages[0]
    tokens = 8 * 32
    training, validation = target_of(base).cost, target_of(base, "eval").cost
    assert training.flops == pytest.approx(tokens * count(SMALL, 32).flops_per_token)
    assert validation.flops == pytest.approx(training.flops / 3)
    assert training.scores == pytest.approx(tokens * 12 * 2 * 8 * 2 * 16.5)  # heads, head_dim, layers, keys on average


def test_flops_of_sampling_leave_the_head_out_of_the_prompt(pipeline):
    base = dataclasses.replace(pipeline.stages[0], evaluation=EvaluationSettings(sample_tokens=8))
    whole, sampled = target_of(base, "eval").cost, target_of(base, "generate").cost
    assert sampled.tokens == 8 * 8
    assert whole.flops - sampled.flops == pytest.approx(8 * 24 * 2 * ENTRIES * 16)


def test_flops_of_the_stages_follow_from_passes(pipeline):
    tokens, small, large = 8 * ANSWERS * 32, forward_flops(SMALL, 32), forward_flops(LARGE, 32)
    direct, ranked = target_in(pipeline, "dpo").cost, target_in(pipeline, "reward").cost
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
    work = target_in(pipeline, "ppo").cost
    assert work.flops == pytest.approx(sum(passes.values()))
    assert (work.rows, work.length, work.tokens) == (episodes, row, episodes * row)


def test_the_benchmark_is_instructgpt_s():
    benchmarks = Path(__file__).parents[2] / "experiments" / "benchmarks"
    recipe, before = chosen(load_recipe(str(benchmarks / "plan_ppo_1300m_6b.py")))
    resolved = target_of(recipe, before=before).resolved
    assert isinstance(recipe, PPO) and resolved.reward_model is not None
    assert count(resolved.model).parameters == 1_315_723_264
    assert count(resolved.reward_model).parameters == 6_658_404_352
    assert (recipe.dialogue.batch_size, recipe.ppo.minibatches, recipe.ppo.ptx_rows) == (512, 8, 8)
    assert recipe.ppo.ptx_coefficient == 27.8 and recipe.plan.topology
