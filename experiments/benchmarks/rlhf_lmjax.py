"""lmjax's side of the comparison: the steps and phases that its stages compile, from the same weights and tokens."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlhf_work as work
from gpt2_reference import Numbers

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.data.conversation_rows import RANKS
from lmjax.evaluate.samples import response_texts
from lmjax.interop.huggingface import HuggingFaceModel, read_model
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import place_rows, shardings_of
from lmjax.parallel.start_jax import prepare_jax
from lmjax.rl.learner import POLICY
from lmjax.rl.reward_function import load_function
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    DialogueSettings,
    KLSettings,
    MeshSettings,
    OptimizerSettings,
    PPOSettings,
    RewardSettings,
    ScheduleSettings,
    TrainSettings,
)
from lmjax.stages.ppo import compile_phases
from lmjax.stages.ppo_learner import ppo_learner, ppo_state
from lmjax.stages.registry import kind_of
from lmjax.tasks.program import Program
from lmjax.tasks.resolved import resolve

OPTIMIZER = OptimizerSettings(
    learning_rate=work.RATE,
    schedule=ScheduleSettings(kind="constant"),
    b1=work.B1,
    b2=work.B2,
    weight_decay=0.0,
    clip_norm=work.CLIP,
)
STEPS = 1_000_000  # of the schedule, which is constant


def rows_of(tokens: np.ndarray) -> Batch:
    """The fields of rows [..., T] whose first half is their prompt."""
    targets = np.pad(tokens[..., 1:], [(0, 0)] * (tokens.ndim - 1) + [(0, 1)]).astype(np.int32)
    places = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
    weights = ((places >= work.ASKED - 1) & (places < tokens.shape[-1] - 1)).astype(np.float32)
    segments = np.ones(tokens.shape, np.int32)
    fields = {TOKENS: tokens.astype(np.int32), TARGETS: targets, WEIGHTS: weights}
    return fields | {POSITIONS: places, SEGMENTS: segments}


def prepare_supervised(stage: str, model: HuggingFaceModel, losses: list[float]) -> Callable[[], None]:
    mesh, settings, entries = make_mesh(MeshSettings()), model.settings, work.SHAPE.vocabulary
    common = {"start": "the same weights", "optimizer": OPTIMIZER}
    dialogue = DialogueSettings(sequence_length=work.SHAPE.length, batch_size=work.SHAPE.rows)

    def built(recipe: SFT | DPO) -> Program:
        whole = dataclasses.replace(recipe, model=settings, train=TrainSettings(steps=STEPS), epochs=None)
        resolved = dataclasses.replace(resolve(whole), entries=entries)
        return kind_of(recipe).programs["train"].build(resolved, mesh)

    if stage == "sft":
        program = built(SFT(dialogue=dialogue, **common))
        batches = [rows_of(tokens) for tokens in work.demonstrations()]
    else:
        recipe = DPO(dialogue=dialogue, beta=work.BETA, **common)
        program = built(recipe)
        ranks = np.tile(np.arange(2, dtype=np.int32), (work.SHAPE.rows // 2, 1))
        batches = [rows_of(tokens) | {RANKS: ranks} for tokens in work.rankings()]
    frozen = [jax.device_put(model.params, shardings_of(kind)) for kind in program.frozen]
    own = jax.tree.map(jnp.array, model.params)
    state = jax.device_put(TrainState.create(own, program.optimizer), shardings_of(program.abstract))

    def step() -> None:
        nonlocal state
        batch = place_rows(batches[len(losses) % len(batches)], mesh)
        state, metrics = program.step(state, *frozen, batch)
        jax.block_until_ready(state)
        losses.append(float(metrics["loss"].mean()))

    return step


def ppo_settings(stage: str) -> PPOSettings:
    epochs, minibatches = work.UPDATES[stage]
    common = {"response_tokens": work.RESPONSE, "epochs": epochs, "minibatches": minibatches, "clip": work.RATIO_CLIP}
    if stage != work.PPO:
        return PPOSettings(baseline="group", group=work.GROUP, **common)
    return PPOSettings(
        discount=work.DISCOUNT,
        gae_lambda=work.LAMBDA,
        value_clip=work.VALUE_CLIP,
        value_coefficient=work.VALUE_COEFFICIENT,
        **common,
    )


def prepare_iterations(stage: str, model: HuggingFaceModel, losses: list[float]) -> Callable[[], None]:
    """GRPO's, or PPO's, which tell their losses."""
    mesh, settings, ppo = make_mesh(MeshSettings()), model.settings, ppo_settings(stage)
    recipe = PPO(
        start="the same weights",
        optimizer=OPTIMIZER,
        value_optimizer=OPTIMIZER,
        dialogue=DialogueSettings(sequence_length=work.PROMPT, batch_size=work.RESPONSES // ppo.group),
        reward=RewardSettings(source="rlhf_work:reward"),
        kl=KLSettings(coefficient=work.KL),
        ppo=ppo,
    )
    reward = load_function(recipe.reward.source, "reward.source")
    numbers = Numbers(work.SHAPE.vocabulary)
    vocabulary = Vocabulary(numbers.vocab_size, numbers.eos_id)
    learner, axes = ppo_learner(recipe, settings, None, vocabulary, jax.default_backend(), STEPS)
    abstract = ppo_state(learner, axes, mesh)
    reference = jax.device_put(model.params, shardings_of(abstract.params[POLICY]))
    phases = compile_phases(learner, mesh, abstract, {"reference": reference})
    own = jax.tree.map(jnp.array, model.params)
    value = None
    if stage == work.PPO:
        value = learner.value.on_trunk(jax.tree.map(jnp.array, own), jax.random.key(0), zero=True)
    state = jax.device_put(learner.create(own, value), shardings_of(abstract))
    batches, done = work.prompts(recipe.dialogue.batch_size).astype(np.int32), 0
    places = np.broadcast_to(np.arange(work.PROMPT, dtype=np.int32), batches.shape[1:])
    given = work.answers().astype(np.int32)

    def iteration() -> None:
        nonlocal state, done
        tokens = batches[done % len(batches)]
        batch = place_rows({TOKENS: tokens, POSITIONS: places, SEGMENTS: np.ones_like(tokens)}, mesh)
        rollout = phases.roll(state, batch)
        asked = [numbers.decode(row.tolist()) for row in tokens.repeat(ppo.group, axis=0)]
        if stage == work.PPO:
            rows = rollout.rows | place_rows({TOKENS: np.hstack([tokens, given[done % len(given)]])}, mesh)
            rollout = dataclasses.replace(rollout, rows=rows)
        scores = reward(asked, response_texts(rollout, numbers))
        placed: Any = place_rows({"scores": scores}, mesh)["scores"]
        state, metrics = phases.learn(state, reference, rollout, placed, batch)
        jax.block_until_ready(state)
        if stage == work.PPO:
            losses.extend(float(metrics[name].mean()) for name in ("policy_loss", "value_loss"))
        done += 1

    return iteration


def prepare(stage: str, folder: Path) -> tuple[Callable[[], None], Callable[[], list[float]]]:
    """A call that does a step, or an iteration; and the losses so far, of a stage that has comparable ones."""
    prepare_jax()
    model, losses = read_model(folder), []
    prepared = prepare_iterations if stage in work.UPDATES else prepare_supervised
    return prepared(stage, model, losses), lambda: losses
