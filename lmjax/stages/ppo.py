"""PPO, PPO-ptx and GRPO: a policy from a reward model or a Python function. A step of the loop is an iteration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.data.conversations import Prompt
from lmjax.data.loader import Loader
from lmjax.errors import UserError
from lmjax.evaluate.policy import PolicyEvaluation, PromptSet
from lmjax.evaluate.samples import response_texts, samples_asked
from lmjax.model.flops import count
from lmjax.model.heads import init_scalar
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.parallel.rows import compile_step, place_rows, row_sharding, shardings_of
from lmjax.parallel.shardings import on_mesh
from lmjax.rl.learner import MIX, POLICY, Learner
from lmjax.rl.reward_function import load_function, load_functions
from lmjax.rl.rollout import Rollout, Vocabulary
from lmjax.settings import DataSettings
from lmjax.settings.stages import PPO
from lmjax.stages.finetune import (
    check_lengths,
    check_sources,
    loader_of,
    mesh_for,
    open_dialogue,
    open_mix,
    planned_steps,
    say_mix,
    say_shares,
    with_dropout,
)
from lmjax.stages.initial import Start, abstract_on, open_reference, open_reward_model, open_start
from lmjax.stages.steps import ppo_learner, ppo_state, ppo_step
from lmjax.stages.train_stage import Outcome, Training, train
from lmjax.training.loop import Metrics, UnfinishedStepError
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest


def ppo(recipe: PPO, workdir: Path, stop: StopRequest, display: ProgressDisplay) -> Outcome:
    """Trains to the stage's last iteration, or until `stop` asks; the same call resumes. What is returned is saved."""
    check_sources(recipe)
    start = open_start(recipe.start, workdir)
    recipe = dataclasses.replace(recipe, model=with_dropout(start.settings, 0.0))
    assert recipe.model is not None
    reward = recipe.reward
    functions = reward.functions_by_field
    judge = None if functions else open_reward_model(reward.source, workdir, start)
    function = load_functions(functions, reward.timeout) if functions else None
    gold = load_function(reward.gold, "reward.gold", reward.timeout) if reward.gold else None
    check_lengths(recipe, start.settings, None if judge is None else judge.settings)
    mesh = mesh_for(recipe, start.settings)
    rows, records = open_dialogue(recipe.dialogue.train, recipe.dialogue, start.tokenizer, "prompt", workdir, display)
    held_out, asked = open_dialogue(
        recipe.dialogue.validation, recipe.dialogue, start.tokenizer, "prompt", workdir, display
    )
    steps = planned_steps(recipe, rows, recipe.dialogue.batch_size)
    prompts = PromptSet(rows, records)
    vocabulary = Vocabulary(start.tokenizer.vocab_size, start.tokenizer.eos_id)
    reward_settings = None if judge is None else judge.settings
    platform = jax.default_backend()
    learner, axes = ppo_learner(recipe, start.settings, reward_settings, vocabulary, platform, steps)
    abstract = ppo_state(learner, axes, mesh)
    held_near = open_reference(recipe.reference, workdir, start) if recipe.reference else start
    reference = held_near.language_model(abstract.params[POLICY])
    frozen = {"reference": reference}
    if judge is not None and learner.reward is not None:
        frozen["reward"] = judge.reward_model(abstract_on(learner.reward, mesh))
    phases = compile_phases(learner, mesh, abstract, frozen)

    def score(rollout: Rollout, prompts: Sequence[str], records: Sequence[Prompt]) -> Any:
        if function is None:
            return phases.score(frozen["reward"], rollout)
        scores = function(prompts, response_texts(rollout, start.tokenizer), records)
        with jax.transfer_guard("allow"):  # what a Python function says comes from the host
            return place_rows({"scores": scores}, mesh)["scores"]

    whole = ppo_step(learner, abstract, mesh).compiled if function is None and gold is None else None

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if whole is not None:
            return whole(state, frozen, batch)
        rollout, texts, records = phases.roll(state, batch), prompts.texts(recipe, batch), prompts.asked(recipe, batch)
        with _saving(state):
            scores = score(rollout, texts, records)
        state, metrics = phases.learn(state, reference, rollout, scores, batch)
        if gold is None:
            return state, metrics
        with _saving(state):
            golds = gold(texts, response_texts(rollout, start.tokenizer), records)  # while devices learn
        return state, metrics | {"gold": Weighted(*jax.device_put((golds.sum(), np.float32(len(golds)))))}

    evaluate = PolicyEvaluation(
        recipe,
        start,
        learner.policy,
        PromptSet(held_out, asked),
        mesh,
        roll=phases.roll,
        score=score,
        divergence=lambda state, rollout: phases.divergence(state, reference, rollout),
        gold=gold,
        samples=samples_asked(recipe.evaluation, recipe.dialogue.template, start.tokenizer, start.settings.context),
        stop=stop,
    )
    batch_at = _batches(recipe, prompts, learner, start, workdir, mesh, display, steps)
    responses = recipe.dialogue.batch_size * learner.ppo.group
    row = recipe.dialogue.sequence_length + learner.ppo.response_tokens
    tokens = responses * row
    training = Training(
        recipe=recipe,
        stage=recipe.name,
        steps=steps,
        mesh=mesh,
        abstract=abstract,
        fresh=lambda: _fresh(learner, abstract, start, judge, frozen, recipe.train.seed, held_near),
        step=step,
        batch_at=batch_at,
        tokens_in=lambda _: tokens,
        prefetch=recipe.dialogue.prefetch,
        flops_per_token=count(start.settings, row).flops_per_token * learner.ppo.epochs,
        evaluate=evaluate,
    )
    state = train(training, workdir, start.tokenizer_folder, stop, display)
    return Outcome(state, steps, start.settings, row)


@contextmanager
def _saving(state: TrainState) -> Iterator[None]:
    """Has the state saved before a mistake of a reward function ends the run."""
    try:
        yield
    except UserError as error:
        raise UnfinishedStepError(str(error), state) from error


def _fresh(
    learner: Learner,
    abstract: TrainState,
    start: Start,
    judge: Start | None,
    frozen: dict[str, Any],
    seed: int,
    held_near: Start | None = None,
) -> TrainState:
    """The policy from the start; the value model from the reward model, or else from the policy with a head of 0."""
    key = jax.random.key(seed)
    is_reference = held_near is None or held_near is start
    policy = frozen["reference"] if is_reference else start.language_model(abstract.params[POLICY])

    def value_of(policy: Any, frozen: dict[str, Any]) -> Any:
        if learner.ppo.baseline == "group":
            return None
        if learner.ppo.baseline == "value_head":
            return init_scalar(key, start.settings.width, zero=True)
        if judge is not None:
            return frozen["reward"]
        return learner.value.on_trunk(policy, key, zero=True)

    def create(policy: Any, frozen: dict[str, Any]) -> TrainState:
        own_policy, own = jax.tree.map(jnp.copy, (policy, frozen))  # the iterations use the state's memory again
        return learner.create(own_policy, value_of(own_policy, own))

    return jax.jit(create, out_shardings=shardings_of(abstract))(policy, frozen)


@dataclass(frozen=True)
class Phases:
    """The parts of an iteration, as functions of the state, the frozen models and what the part before made."""

    roll: Callable[[TrainState, Batch], Rollout]
    score: Callable[[Any, Rollout], Any]
    divergence: Callable[[TrainState, Any, Rollout], Any]
    learn: Callable[..., tuple[TrainState, Metrics]]


def compile_phases(learner: Learner, mesh: Mesh, abstract: TrainState, frozen: dict[str, Any]) -> Phases:
    """The phases, compiled apart; each is compiled when it is first called."""
    own, rows, reference = shardings_of(abstract), row_sharding(mesh), shardings_of(frozen["reference"])

    def learn(state: TrainState, reference: Any, experience: tuple[Rollout, Any, Batch]) -> tuple[TrainState, Metrics]:
        return learner.learn(state, reference, *experience)

    compiled = compile_step(learn, mesh, abstract, frozen["reference"], compute=learner.policy.compute)
    return Phases(
        roll=jax.jit(on_mesh(learner.roll, mesh), in_shardings=(own, rows), out_shardings=rows),
        score=jax.jit(on_mesh(learner.score, mesh), out_shardings=rows),
        divergence=jax.jit(on_mesh(learner.divergence, mesh), in_shardings=(own, reference, rows), out_shardings=rows),
        learn=lambda state, reference, *experience: compiled(state, reference, experience),
    )


def _batches(
    recipe: PPO,
    prompts: PromptSet,
    learner: Learner,
    start: Start,
    workdir: Path,
    mesh: Mesh,
    display: ProgressDisplay,
    steps: int,
) -> Callable[[int], Batch]:
    """The prompts of an iteration and, for PPO-ptx, its pretraining rows."""
    loader = loader_of([prompts.of_source(number) for number in range(len(recipe.dialogue.train))], recipe.dialogue)
    say_shares(recipe.dialogue.train, loader, steps, display)
    mix: Loader | None = None
    if recipe.mix:
        texts = open_mix(recipe.mix, start, workdir, display.say)
        episodes = recipe.dialogue.batch_size * learner.ppo.group * learner.ppo.epochs
        size = episodes * learner.ppo.mix_rows
        rows_each = size // recipe.dialogue.batch_size
        earlier = recipe.dialogue.earlier_batches
        data = DataSettings(
            sequence_length=recipe.mix_length,
            batch_size=size,
            seed=recipe.train.seed,
            earlier_batches=tuple((until, n * rows_each, recipe.mix_length, 0, 0, 1) for until, n, *_ in earlier),
        )
        mix = Loader(texts, [source.weight for source in recipe.mix], data)
        say_mix(recipe.mix, texts, mix, steps, display)

    def batch_at(step: int) -> Batch:
        batch = loader.batch_at(step)
        if mix is not None:
            batch = batch | {MIX + name: array for name, array in mix.batch_at(step).items()}
        return place_rows(batch, mesh)

    return batch_at
