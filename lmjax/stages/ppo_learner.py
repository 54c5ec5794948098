"""The models, optimizers and state of PPO, from shapes alone."""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.model.heads import ScalarModel, init_scalar, scalar_axes
from lmjax.model.language_model import LanguageModel
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.rates import model_rates
from lmjax.optim.schedules import Schedule, course_of, schedule_of
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import parameter_shardings, state_shardings, with_shardings
from lmjax.rl.learner import AVERAGE, POLICY, VALUE, Learner
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import PPO, ModelSettings, OptimizerSettings


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
    optimizer, schedule = _optimizer(recipe, "optimizer", updates, axes[POLICY], policy_settings)
    optimizers = {POLICY: optimizer}
    if VALUE in axes:
        shape = reward_settings or policy_settings
        optimizers[VALUE] = _optimizer(recipe, "value_optimizer", updates, axes[VALUE], shape)[0]
    learner = Learner(
        *(policy, value, reward, vocabulary, recipe.ppo, recipe.kl, recipe.reward, optimizers),
        schedule=schedule,
        microbatches=recipe.train.parts,
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
    return with_shardings(shapes, shardings)


def _optimizer(
    recipe: PPO, field: Literal["optimizer", "value_optimizer"], steps: int, logical_axes: Any, model: ModelSettings
) -> tuple[optax.GradientTransformation, Schedule]:
    settings: OptimizerSettings = getattr(recipe, field)
    course = course_of(settings.schedule, settings.learning_rate, steps, field=f"{field}.schedule")
    schedule = schedule_of(settings.schedule, course)
    return make_optimizer(settings, schedule, logical_axes, model_rates(logical_axes, model)), schedule
