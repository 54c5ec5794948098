"""The step of every stage that goes on from a trained model, on a mesh: what a run compiles, and a plan without data.

In: a stage's recipe, the models' settings and a mesh, whose devices need not be attached. Out: a `MeshStep`, or for PPO
its `Learner` too. Nothing is allocated, and nothing is compiled before the step is called or lowered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.model.heads import ScalarModel, init_scalar, scalar_axes
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.preferences import preference_loss, reward_loss
from lmjax.objective.weighted import LossFunction
from lmjax.optim.train_state import TrainState
from lmjax.parallel.rows import compile_step
from lmjax.parallel.shardings import parameter_shardings, state_shardings
from lmjax.rl.learner import AVERAGE, POLICY, VALUE, Learner
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import ModelSettings
from lmjax.settings.stages import DPO, PPO, SFT, RewardModel
from lmjax.stages.finetune import abstract_of, optimizer_of
from lmjax.stages.initial import abstract_on
from lmjax.training.loop import Metrics
from lmjax.training.step import make_train_step


@dataclass(frozen=True)
class MeshStep:
    """A training step (state, *frozen, batch) -> (state, metrics), and the shapes and shardings of what it takes."""

    model: Any  # a LanguageModel, or the ScalarModel of a reward model
    loss_of: Callable[..., LossFunction]  # of what is frozen
    optimizer: optax.GradientTransformation
    abstract: TrainState
    frozen: tuple[Any, ...]
    compiled: Any  # by jax.jit


def sft_step(recipe: SFT, settings: ModelSettings, mesh: Mesh, *, steps: int, entries: int) -> MeshStep:
    """Of supervised fine-tuning, for so many steps in all; `entries` are the tokenizer's."""
    model = LanguageModel(settings, recipe.compute, platform_of(mesh))
    options = {"z_loss": recipe.train.z_loss, "label_smoothing": recipe.train.label_smoothing}
    loss_fn = language_loss(model, valid_vocab=entries, **options)
    return _step_of(recipe, model, lambda: loss_fn, mesh, steps)


def reward_step(recipe: RewardModel, settings: ModelSettings, mesh: Mesh, *, steps: int) -> MeshStep:
    """Of a reward model."""
    model = ScalarModel(LanguageModel(settings, recipe.compute, platform_of(mesh)))
    loss_fn = reward_loss(model, label_smoothing=recipe.label_smoothing, margin=recipe.margin, centring=recipe.centring)
    return _step_of(recipe, model, lambda: loss_fn, mesh, steps)


def dpo_step(recipe: DPO, settings: ModelSettings, mesh: Mesh, *, steps: int, entries: int) -> MeshStep:
    """Of DPO; what is frozen is the reference."""
    model = LanguageModel(settings, recipe.compute, platform_of(mesh))

    def loss_of(reference: Any) -> LossFunction:
        smoothing = recipe.label_smoothing
        return preference_loss(model, reference, beta=recipe.beta, label_smoothing=smoothing, valid_vocab=entries)

    return _step_of(recipe, model, loss_of, mesh, steps, abstract_on(model, mesh))


def ppo_step(learner: Learner, abstract: TrainState, mesh: Mesh) -> MeshStep:
    """A whole iteration of PPO with a reward model, on a state of `ppo_state`.

    What is frozen are the reference and the reward model.
    """
    assert learner.reward is not None
    frozen = {"reference": abstract_on(learner.policy, mesh), "reward": abstract_on(learner.reward, mesh)}
    compiled = compile_step(learner.iterate, mesh, abstract, frozen, compute=learner.policy.compute)
    return MeshStep(learner.policy, lambda: learner.loss, learner.optimizers[POLICY], abstract, (frozen,), compiled)


def ppo_learner(
    recipe: PPO,
    policy_settings: ModelSettings,
    reward_settings: ModelSettings | None,
    vocabulary: Vocabulary,
    platform: str,
    steps: int,
) -> tuple[Learner, dict[str, Any]]:
    """The models and optimizers of PPO for so many iterations, and the logical axes of what is trained."""
    policy = LanguageModel(policy_settings, recipe.compute, platform)
    reward = None
    if reward_settings is not None:
        reward = ScalarModel(LanguageModel(reward_settings, recipe.compute, platform))
    value = reward or ScalarModel(policy)
    axes: dict[str, Any] = {POLICY: policy.logical_axes()}
    if recipe.ppo.baseline != "group":
        axes[VALUE] = value.logical_axes() if recipe.ppo.baseline == "value" else scalar_axes()
    updates = steps * recipe.ppo.epochs * recipe.ppo.minibatches
    optimizer, schedule = optimizer_of(recipe.optimizer, updates, axes[POLICY])
    optimizers = {POLICY: optimizer}
    if VALUE in axes:
        optimizers[VALUE] = optimizer_of(recipe.value_optimizer, updates, axes[VALUE])[0]
    learner = Learner(
        *(policy, value, reward, vocabulary, recipe.ppo, recipe.kl, recipe.reward, optimizers),
        schedule=schedule,
        microbatches=recipe.train.microbatches,
        seed=recipe.train.seed,
    )
    return learner, axes


def ppo_state(learner: Learner, axes: dict[str, Any], mesh: Mesh) -> TrainState:
    """The shapes and shardings of PPO's state, each part's optimizer state cut as the part is."""

    def create(rng: jax.Array) -> TrainState:
        value = None
        if learner.ppo.baseline != "group":
            width = learner.policy.settings.width
            value = learner.value.init(rng) if learner.ppo.baseline == "value" else init_scalar(rng, width)
        return learner.create(learner.policy.init(rng), value)

    shapes = jax.eval_shape(create, jax.random.key(0))
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, shapes)
    for name, own in axes.items():
        part = TrainState(shapes.step, shapes.params[name], shapes.opt_state[name])
        cut = state_shardings(part, parameter_shardings(own, mesh), mesh)
        shardings.params[name], shardings.opt_state[name] = cut.params, cut.opt_state
        if name == POLICY and AVERAGE in shapes.opt_state:
            shardings.opt_state[AVERAGE] = cut.params
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _step_of(
    recipe: SFT | RewardModel | DPO,
    model: LanguageModel | ScalarModel,
    loss_of: Callable[..., LossFunction],
    mesh: Mesh,
    steps: int,
    *frozen: Any,
) -> MeshStep:
    axes = model.logical_axes()
    optimizer, schedule = optimizer_of(recipe.optimizer, steps, axes)
    parts, seed = recipe.train.microbatches, recipe.train.seed

    def step(state: TrainState, *rest: Any) -> tuple[TrainState, Metrics]:
        *given, batch = rest
        loss_fn = loss_of(*given)
        return make_train_step(loss_fn, optimizer, microbatches=parts, seed=seed, schedule=schedule)(state, batch)

    abstract = abstract_of(lambda params: TrainState.create(params, optimizer), model.init, axes, mesh)
    compiled = compile_step(step, mesh, abstract, *frozen, compute=recipe.compute)
    return MeshStep(model, loss_of, optimizer, abstract, frozen, compiled)


def platform_of(mesh: Mesh) -> str:
    """Of the devices, attached or not."""
    return mesh.devices.flat[0].platform
