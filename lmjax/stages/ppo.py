"""PPO, PPO-ptx and GRPO: a policy from a reward model or a Python function. A step of the loop is an iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.checkpoints.initial import InitialCheckpoint, open_reference
from lmjax.data.batch import FIELD_DTYPES, POSITIONS, SEGMENTS, TOKENS, Batch, BatchSpec, Field, language_fields
from lmjax.data.conversation_rows import RECORD
from lmjax.data.conversations import Prompt
from lmjax.data.loader import Loader, RowLoader
from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.evaluate.policy import PolicyEvaluation, PromptSet
from lmjax.evaluate.samples import response_texts, samples_asked
from lmjax.model.flops import TRAIN, count, forward_flops
from lmjax.model.heads import init_scalar
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import (
    ROWS,
    abstract_batch,
    abstract_params,
    batch_sharding,
    jit_step,
    on_mesh,
    place_rows,
    shardings_of,
)
from lmjax.rl.learner import MIX, POLICY, SCORES, Learner
from lmjax.rl.reward_function import RewardFunction, load_function, load_functions
from lmjax.rl.rollout import Rollout, Vocabulary
from lmjax.run_files import METRICS_FILE
from lmjax.settings import PPO, DataSettings, Stage
from lmjax.stages.changes import DIALOGUE, TRAINING
from lmjax.stages.first_lines import model_line, steps_line
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.ppo_learner import ppo_learner, ppo_state
from lmjax.stages.ppo_shown import CHANGES, SHOWN
from lmjax.stages.train_stage import Outcome, Training, planned_steps, train
from lmjax.tasks.conversations import dialogue_stage, mix_shares, open_conversations, open_mix, shares_of
from lmjax.tasks.program import Cost, Program, platform_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, TaskData
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.loop import Metrics, UnfinishedStepError
from lmjax.training.record import read_metrics


def ppo(resolved: ResolvedStage, session: Session) -> Outcome:
    """Trains to the stage's last iteration, or until a stop is asked for; the same call resumes."""
    resolved = resolved.opened()
    recipe, start = resolved.of(PPO), resolved.start
    assert start is not None
    dialogue_stage(resolved)
    rewards = _open_rewards(recipe)
    resolved.check_lengths()
    mesh = resolved.mesh()
    rows, records = open_conversations(recipe.dialogue.train, "prompt", resolved, session.display)
    held_out = PromptSet(*open_conversations(recipe.dialogue.validation, "prompt", resolved, session.display))
    steps = planned_steps(recipe, TaskData(rows, (), epoch_rows=sum(map(len, rows))))
    reference = open_reference(recipe.reference, resolved.folder, start) if recipe.reference else start
    iteration = _open_iteration(resolved, reference, PromptSet(rows, records), rewards, mesh, steps)
    learner, row = iteration.learner, recipe.dialogue.sequence_length + recipe.ppo.response_tokens
    ramp = BatchRamp(recipe.loading)
    size = recipe.loading.batch_size * learner.ppo.group
    training = Training(
        recipe=recipe,
        steps=steps,
        mesh=mesh,
        abstract=iteration.abstract,
        fresh=lambda: _fresh(
            learner, iteration.abstract, start, resolved.scorer, iteration.frozen, recipe.train.seed, reference
        ),
        step=iteration.step(),
        batch_at=_batches(resolved, iteration.prompts, learner, mesh, session, steps),
        tokens_in=lambda at: ramp.batch_size_at(at) * learner.ppo.group * row,
        flops_per_token=count(start.settings, row).flops_per_token * learner.ppo.epochs,
        evaluate=_evaluation(iteration, held_out, start, session),
        evaluates_fresh=True,
    )
    tokens = sum(map(training.tokens_in, range(steps)))
    for line in (model_line(start.settings, row), steps_line(steps, size, row, tokens)):
        session.display.say(line)
    state = train(training, resolved, session)
    return Outcome(state, steps, start.settings, row, tokens, training.flops_per_token, mesh.devices.size)


class Rewards(NamedTuple):
    """The Python functions that score responses; None where the recipe names none."""

    trained: RewardFunction | None  # on which the policy is trained, in place of a reward model
    known: RewardFunction | None


def _open_rewards(recipe: PPO) -> Rewards:
    reward, functions = recipe.reward, recipe.reward.functions_by_field
    return Rewards(
        load_functions(functions, reward.timeout) if functions else None,
        load_function(reward.known_reward, "reward.known_reward", reward.timeout) if reward.known_reward else None,
    )


@dataclass(frozen=True)
class Iteration:
    """What an iteration of a run is computed with."""

    recipe: PPO
    tokenizer: Tokenizer
    prompts: PromptSet
    rewards: Rewards
    learner: Learner
    mesh: Mesh
    abstract: TrainState
    frozen: dict[str, Any]  # parameters by the model's name: "reference", and "reward" where there is such a model
    phases: Phases

    def score(self, rollout: Rollout, prompts: Sequence[str], records: Sequence[Prompt]) -> Any:
        """The rewards of a rollout's responses, by the recipe's functions or else by its reward model."""
        if self.rewards.trained is None:
            return self.phases.score(self.frozen["reward"], rollout)
        scores = self.rewards.trained(prompts, response_texts(rollout, self.tokenizer), records)
        with jax.transfer_guard("allow"):  # the scores of a Python function come from the host
            return place_rows({"scores": scores}, self.mesh)["scores"]

    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """One iteration: one program with a reward model alone, or else phases around the Python functions."""
        if self.rewards != (None, None):
            return self._step_in_phases
        whole = _iteration(self.learner, self.abstract, self.mesh)
        return lambda state, batch: whole(state, self.frozen, batch)

    def _step_in_phases(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rollout = self.phases.roll(state, batch)
        texts, records = self.prompts.texts(self.recipe, batch), self.prompts.asked(self.recipe, batch)
        with _saving(state):
            scores = self.score(rollout, texts, records)
        state, metrics = self.phases.learn(state, self.frozen["reference"], rollout, scores, batch)
        known = self.rewards.known
        if known is None:
            return state, metrics
        with _saving(state):
            golds = known(texts, response_texts(rollout, self.tokenizer), records)  # while devices learn
        return state, metrics | {"gold": Weighted(*jax.device_put((golds.sum(), np.float32(len(golds)))))}


def _open_iteration(
    resolved: ResolvedStage,
    reference: InitialCheckpoint,
    prompts: PromptSet,
    rewards: Rewards,
    mesh: Mesh,
    steps: int,
) -> Iteration:
    """The models of a run, of which the frozen ones are read."""
    recipe, tokenizer, scorer = resolved.of(PPO), resolved.tokenizer, resolved.scorer
    assert tokenizer is not None
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.eos_id)
    learner, axes = ppo_learner(recipe, resolved.model, resolved.reward_model, vocabulary, jax.default_backend(), steps)
    abstract = ppo_state(learner, axes, mesh)
    frozen = {"reference": reference.language_model(abstract.params[POLICY])}
    if scorer is not None and learner.reward is not None:
        frozen["reward"] = scorer.reward_model(abstract_params(learner.reward, mesh))
    phases = compile_phases(learner, mesh, abstract, frozen)
    return Iteration(recipe, tokenizer, prompts, rewards, learner, mesh, abstract, frozen, phases)


def _evaluation(
    iteration: Iteration, held_out: PromptSet, start: InitialCheckpoint, session: Session
) -> PolicyEvaluation:
    recipe, phases, reference = iteration.recipe, iteration.phases, iteration.frozen["reference"]
    samples = samples_asked(recipe.evaluation, recipe.dialogue.template, iteration.tokenizer, start.settings.context)
    return PolicyEvaluation(
        *(recipe, iteration.tokenizer, iteration.learner.policy, held_out, iteration.mesh),
        roll=phases.roll,
        score=iteration.score,
        divergence=lambda state, rollout: phases.divergence(state, reference, rollout),
        gold=iteration.rewards.known,
        samples=samples,
        stop=session.stop,
    )


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
    start: InitialCheckpoint,
    scorer: InitialCheckpoint | None,
    frozen: dict[str, Any],
    seed: int,
    reference: InitialCheckpoint,
) -> TrainState:
    """The policy from the start; the value model from the reward model, or else from the policy with a head of 0."""
    key = jax.random.key(seed)
    policy = frozen["reference"] if reference is start else start.language_model(abstract.params[POLICY])

    def value_of(policy: Any, frozen: dict[str, Any]) -> Any:
        if learner.ppo.baseline == "group":
            return None
        if learner.ppo.baseline == "value_head":
            return init_scalar(key, start.settings.width, zero=True)
        if scorer is not None:
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
    own, rows, reference = shardings_of(abstract), batch_sharding(mesh, ROWS), shardings_of(frozen["reference"])

    def learn(state: TrainState, reference: Any, experience: tuple[Rollout, Any, Batch]) -> tuple[TrainState, Metrics]:
        return learner.learn(state, reference, *experience)

    compute = learner.policy.compute
    compiled = jit_step(learn, abstract, mesh, compute, frozen=(frozen["reference"],), batch=rows)
    return Phases(
        roll=jax.jit(on_mesh(learner.roll, mesh), in_shardings=(own, rows), out_shardings=rows),
        score=jax.jit(on_mesh(learner.score, mesh), out_shardings=rows),
        divergence=jax.jit(on_mesh(learner.divergence, mesh), in_shardings=(own, reference, rows), out_shardings=rows),
        learn=lambda state, reference, *experience: compiled(state, reference, experience),
    )


def _batches(
    resolved: ResolvedStage, prompts: PromptSet, learner: Learner, mesh: Mesh, session: Session, steps: int
) -> Callable[[int], Batch]:
    """The prompts of an iteration and, for PPO-ptx, its pretraining rows."""
    recipe, display = resolved.of(PPO), session.display
    sources = recipe.dialogue.train
    rows = [prompts.of_source(number) for number in range(len(sources))]
    loader = RowLoader(rows, [source.weight for source in sources], recipe.loading)
    for line in shares_of(sources)(loader, steps):
        display.say(line)
    mix: Loader | None = None
    if recipe.mix:
        texts = open_mix(resolved, session)
        episodes = recipe.dialogue.batch_size * learner.ppo.group * learner.ppo.epochs
        size = episodes * learner.ppo.ptx_rows
        rows_each = size // recipe.dialogue.batch_size
        earlier = recipe.dialogue.earlier_batches
        data = DataSettings(
            sequence_length=recipe.mix_length,
            batch_size=size,
            seed=recipe.train.seed,
            earlier_batches=tuple((until, n * rows_each, recipe.mix_length, 0, 0, 1) for until, n, *_ in earlier),
        )
        mix = Loader(texts, [source.weight for source in recipe.mix], data)
        for line in mix_shares(recipe.mix, texts, mix, steps):
            display.say(line)

    def batch_at(step: int) -> Batch:
        batch = loader.batch_at(step)
        if mix is not None:
            batch = batch | {MIX + name: array for name, array in mix.batch_at(step).items()}
        return place_rows(batch, mesh)

    return batch_at


def _iteration(learner: Learner, abstract: TrainState, mesh: Mesh) -> Any:
    """(state, frozen, batch) -> (state, metrics): a whole iteration with a reward model, as one program."""
    frozen = _frozen_models(learner, mesh)
    return jit_step(
        learner.iterate, abstract, mesh, learner.policy.compute, frozen=(frozen,), batch=batch_sharding(mesh, ROWS)
    )


def _frozen_models(learner: Learner, mesh: Mesh) -> dict[str, Any]:
    models = {"reference": learner.policy} | ({} if learner.reward is None else {"reward": learner.reward})
    return {name: abstract_params(model, mesh) for name, model in models.items()}


def build(resolved: ResolvedStage, mesh: Mesh) -> Program:
    """A whole iteration as one program: sampling, scoring by a reward model, advantages and all updates.

    The scores of a Python function are among its inputs: what the function takes, between two programs, is not in it.
    """
    recipe = resolved.of(PPO)
    vocabulary = Vocabulary(resolved.vocabulary, resolved.vocabulary - 1)
    learner, axes = ppo_learner(
        recipe, resolved.model, resolved.reward_model, vocabulary, platform_of(mesh), recipe.train.steps
    )
    abstract = ppo_state(learner, axes, mesh)
    rows, shape = recipe.dialogue.batch_size, (recipe.dialogue.batch_size, recipe.dialogue.sequence_length)
    spec: BatchSpec = {name: Field(shape, FIELD_DTYPES[name]) for name in (TOKENS, POSITIONS, SEGMENTS)}
    spec[RECORD] = Field((rows, 1))
    if learner.reward is None:
        spec[SCORES] = Field((rows * recipe.ppo.group,), "float32")
    if recipe.mix:
        mixed = language_fields((_ptx_rows(recipe), recipe.mix_length))
        spec |= {MIX + name: field for name, field in mixed.items()}
    step, frozen = _iteration(learner, abstract, mesh), (_frozen_models(learner, mesh),)
    optimizer = learner.optimizers[POLICY]
    return Program(learner.policy, optimizer, abstract, frozen, spec, abstract_batch(spec, mesh), step)


def cost(resolved: ResolvedStage) -> Cost:
    """Of an iteration."""
    recipe, policy_settings, scorer = resolved.of(PPO), resolved.model, resolved.reward_model
    scored = not recipe.reward.functions_by_field
    if scorer is None and scored:
        raise UserError(
            f"{recipe.name}.reward.source = {recipe.reward.source!r}: expected a reward model whose settings are "
            "known; name a stage of the pipeline, and give it its `model`"
        )
    prompt, new = recipe.dialogue.sequence_length, recipe.ppo.response_tokens
    row, episodes = prompt + new, recipe.dialogue.batch_size * recipe.ppo.group
    scalar_settings = scorer or policy_settings
    policy, scalar = forward_flops(policy_settings, row), forward_flops(scalar_settings, row)
    mixed = forward_flops(policy_settings, recipe.mix_length)
    updates = TRAIN * recipe.ppo.epochs
    passes = scored + (1 + updates) * (recipe.ppo.baseline == "value")  # of the reward model and of the value model
    reads = 2 + updates  # of the old policy, of the reference, and in the updates
    mix_tokens = TRAIN * (_ptx_rows(recipe) if recipe.mix else 0) * recipe.mix_length
    return Cost(
        *((policy_settings, *((scalar_settings,) if passes else ())), episodes, row, episodes * row),
        products=episodes * ((1 + reads) * (row * policy.body + new * policy.head) + passes * row * scalar.body)
        + mix_tokens * (mixed.body + mixed.head),
        scores=episodes * row * (reads * policy.scores + passes * scalar.scores) + mix_tokens * mixed.scores,
        cached=episodes * row * policy.scores,
    )


def _ptx_rows(recipe: PPO) -> int:
    return recipe.dialogue.batch_size * recipe.ppo.group * recipe.ppo.epochs * recipe.ppo.ptx_rows


def _rewards_reached(folder: Path, stage: Stage) -> list[str]:
    """What the policy made of the known reward, where there is one."""
    if not (folder / METRICS_FILE).exists():
        return []
    golds = [line["validation_gold"] for line in read_metrics(folder) if "validation_gold" in line]
    if not golds:
        return []
    return [f"gold reward of {stage.start}: {golds[0]:.3f}; of {stage.name}: {golds[-1]:.3f}"]


KIND = StageKind(
    settings=PPO,
    shown=SHOWN,
    changes=(TRAINING, DIALOGUE, CHANGES),
    train=ppo,
    programs={"train": Planned(build, cost)},
    describe_finished=_rewards_reached,
)
