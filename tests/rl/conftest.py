"""A small policy with dropout fields, value and reward models, ragged prompts, and one iteration's parts, compiled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.rl.learner import Learner
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import AttentionSettings, KLSettings, ModelSettings, PPOSettings, RewardSettings

END = 3
VOCABULARY = Vocabulary(size=13, end=END)  # the table has more rows than that
SETTINGS = ModelSettings(
    layers=1,
    width=16,
    context=24,
    vocab_size=16,
    dropout=0.3,
    attention=AttentionSettings(heads=2, dropout=0.3),
    init_std=0.4,  # policies that are far from uniform
)
LENGTHS = [3, 8, 5, 1]


def ragged_prompts(side="left", repeat=1, width=8):
    rng = np.random.default_rng(0)
    lengths = LENGTHS * repeat
    batch = {name: np.zeros((len(lengths), width), np.int32) for name in ("tokens", "positions", "segments")}
    for row, length in enumerate(lengths):
        at = slice(width - length, width) if side == "left" else slice(0, length)
        batch["tokens"][row, at] = rng.integers(4, 13, length)
        batch["positions"][row, at] = np.arange(length)
        batch["segments"][row, at] = 1
    return {name: jnp.asarray(array) for name, array in batch.items()}


@functools.cache
def models():
    policy = LanguageModel(SETTINGS)
    return policy, ScalarModel(policy)


@functools.cache
def parameters():
    policy, scalar = models()
    keys = jax.random.split(jax.random.key(1), 4)
    reference, trained = jax.jit(policy.init)(keys[0]), jax.jit(policy.init)(keys[1])
    nearby = jax.tree.map(lambda a, b: a + 0.1 * (b - a), reference, trained)
    init = jax.jit(scalar.init)
    return {"reference": reference, "policy": nearby, "value": init(keys[2]), "reward": init(keys[3])}


def make_learner(optimizer=optax.sgd(0.1), **changes):
    policy, scalar = models()
    ppo = {"response_tokens": 6, "minibatches": 2, "temperature": 0.8}
    own = {
        name: changes.pop(name) for name in list(changes) if name in {f.name for f in dataclasses.fields(PPOSettings)}
    }
    parts = {
        "kl": KLSettings(coefficient=0.1),
        "shaping": RewardSettings(no_eos_penalty=1.0),
        "optimizers": {"policy": optimizer, "value": optimizer},
    }
    return Learner(policy, scalar, scalar, VOCABULARY, PPOSettings(**(ppo | own)), **(parts | changes))


def first_state(learner):
    own = parameters()
    value = {"value": own["value"], "value_head": own["value"]["scalar"], "group": None}[learner.ppo.baseline]
    state = learner.create(own["policy"], value)
    return dataclasses.replace(state, step=jnp.int32(8))  # an iteration in which some responses end by themselves


def experience_of(learner, params, reference, rollout, scores, coefficient=0.1):
    """An iteration's arrays and metrics, where the trained models read the responses before the first update."""
    scored = learner.scored(reference, rollout, scores, jnp.float32(coefficient))
    return learner.experience(scored, learner._read(params, rollout.rows, rollout.mask.shape[1]))


@functools.cache
def rolled(response_tokens, group, side):
    """The rollout of the first iteration, which depends on nothing else of a learner."""
    learner = make_learner(response_tokens=response_tokens, group=group)
    return jax.jit(learner.roll)(first_state(learner), ragged_prompts(side))


@pytest.fixture
def prompts():
    return ragged_prompts()
