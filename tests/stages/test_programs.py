"""How many logits the programs of PPO, GRPO, SFT, DPO and reward models hold.

What a program holds is read off the compiler's plan of its temporary memory for two vocabularies: only arrays with a
place for each entry of the vocabulary grow with it. Those are logits, and gradients and updates of the embedding, which
are smaller than all logits by the width over the number of tokens; there is room for some of them.
"""

import jax
import pytest

from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params, on_mesh
from lmjax.plan.target import target_of
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    AttentionSettings,
    ComputeSettings,
    DialogueSettings,
    MeshSettings,
    ModelSettings,
    PPOSettings,
    RewardModel,
    RewardSettings,
    SourceSettings,
)
from lmjax.stages.ppo_learner import ppo_learner, ppo_state

pytestmark = pytest.mark.usefixtures("optimized")  # what a program holds is read off it
ROWS, LENGTH, PROMPT, WIDTH = 4, 64, 8, 8
VOCABULARIES = (16_384, 32_768)
PPO_CASES = {
    "ppo": {},
    "ppo with mix": {"ptx_coefficient": 5.0},
    "ppo with value_head": {"baseline": "value_head"},
    "grpo": {"baseline": "group", "group": 2},
}
PROGRAMS = ("sft", "reward", "dpo", "ppo", "ppo with mix", "ppo with value_head")  # whole steps
TABLES = 6  # arrays like the embedding that a program may hold beside the logits


def one_device():
    return make_mesh(MeshSettings(), jax.devices()[:1])


def model_of(vocabulary):
    return ModelSettings(layers=1, width=WIDTH, context=80, vocab_size=vocabulary, attention=AttentionSettings(heads=2))


def recipe_of(stage, vocabulary, chunk=None):
    """A stage that reads ROWS rows of LENGTH tokens, or makes as many responses of as many tokens."""
    common = {"start": "a", "model": model_of(vocabulary), "compute": ComputeSettings(loss_chunk=chunk)}
    if stage in PPO_CASES:
        ppo = PPOSettings(response_tokens=LENGTH, **PPO_CASES[stage])
        prompts = DialogueSettings(sequence_length=PROMPT, batch_size=ROWS // ppo.group)
        mix = {"mix": (SourceSettings(),), "mix_length": LENGTH} if ppo.ptx_coefficient else {}
        return PPO(dialogue=prompts, reward=RewardSettings(source="b"), ppo=ppo, **mix, **common)
    answers = 1 if stage == "sft" else 2
    dialogue = DialogueSettings(sequence_length=LENGTH, batch_size=ROWS // answers, most_answers=2)
    return {"sft": SFT, "reward": RewardModel, "dpo": DPO}[stage](dialogue=dialogue, **common)


def lowered(program, vocabulary, chunk=None):
    """The step of a stage, or one phase of PPO or GRPO."""
    mesh, of = one_device(), model_of(vocabulary)
    if program in PROGRAMS:
        scorer = RewardModel(name="b", start="a", model=of)
        return target_of(recipe_of(program, vocabulary, chunk), before=(scorer,)).lower(mesh)
    recipe = recipe_of("grpo" if program == "learn" else "ppo", vocabulary, chunk)
    learner, axes = ppo_learner(recipe, of, of, Vocabulary(vocabulary, 0), "cpu", steps=1)
    state = ppo_state(learner, axes, mesh)
    reference, judge = abstract_params(learner.policy, mesh), abstract_params(learner.reward, mesh)
    prompts = {
        name: jax.ShapeDtypeStruct((recipe.dialogue.batch_size, PROMPT), "int32")
        for name in ("tokens", "positions", "segments")
    }
    rollout = jax.eval_shape(learner.roll, state, prompts)
    scores = jax.ShapeDtypeStruct((ROWS,), "float32")
    arguments = {
        "roll": (state, prompts),
        "score": (judge, rollout),
        "divergence": (state, reference, rollout),
        "learn": (state, reference, rollout, scores, prompts),
    }[program]
    return jax.jit(on_mesh(getattr(learner, program), mesh)).lower(*arguments)


def logits_held(program, chunk=None):
    """How many float32 arrays [ROWS, LENGTH, vocabulary] a program holds at its peak, smaller arrays included."""

    def temporary(vocabulary):
        return lowered(program, vocabulary, chunk).compile().memory_analysis().temp_size_in_bytes

    small, large = VOCABULARIES
    return (temporary(large) - temporary(small)) / (4 * ROWS * LENGTH * (large - small))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ppo", "ppo with mix", "ppo with value_head", "learn")]


@pytest.mark.parametrize("program", ["sft", "reward", "dpo", *SLOW, "roll", "score", "divergence"])
def test_no_program_holds_more_than_all_logits_once(program):
    assert logits_held(program) <= 1 + TABLES * WIDTH / (ROWS * LENGTH)


@pytest.mark.parametrize("program", ["sft", "dpo"])
def test_programs_whose_chunk_is_the_whole_batch_are_seen_to_hold_more(program):
    assert logits_held(program, chunk=10**6) > 1.9
