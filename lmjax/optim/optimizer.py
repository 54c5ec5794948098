"""Optimizers from a recipe's settings, as optax transformations; what is decayed is read off the logical axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.optim.adafactor import scale_by_adafactor
from lmjax.optim.rates import Rates, scale_by
from lmjax.optim.schedules import Schedule
from lmjax.settings import OptimizerSettings

EMBEDDING_AXES = ("vocab", "positions", "segment_types")


def decay_mask(logical_axes: Any, decay_embeddings: bool) -> Any:
    """True for each parameter that weight decay touches: matrices, and embedding tables only when asked for.

    `logical_axes` is a tree like the parameters whose leaves are tuples of axis names. Norms and biases, which have no
    "embed" axis beside another one, are never decayed, nor is what only stacking over layers makes look like a matrix.
    A table that is also the head counts as an embedding; a head of its own is a matrix.
    """

    def decays(axes: tuple[str, ...]) -> bool:
        own = [name for name in axes if name != "layers"]
        if len(own) < 2:
            return False
        return decay_embeddings if any(name in EMBEDDING_AXES for name in own) else "embed" in own

    return jax.tree.map(decays, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def make_optimizer(
    settings: OptimizerSettings, schedule: Schedule, logical_axes: Any, rates: Rates = Rates()
) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then the optimizer, then decoupled weight decay, then the learning rate.

    Weight decay is multiplied by the learning rate (Loshchilov & Hutter 2019). The rate is that of the `step` which
    `update` receives, not of a count in the state, so that a skipped step does not set it back. Without bias correction
    Adam is BERT's (Devlin et al. 2019, the released code). `logical_axes` is the model's tree of axis names; `rates`
    multiplies the rate of each parameter, with or without its decay.
    """
    parts: list[optax.GradientTransformation] = []
    if settings.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name == "adafactor":
        parts.append(scale_by_adafactor(logical_axes, settings.parameter_scale))
    else:
        parts.append(_adam(settings))
    if rates.updates is not None:
        parts.append(scale_by(rates.updates))
    if settings.weight_decay:
        mask = decay_mask(logical_axes, settings.decay_embeddings)
        parts.append(optax.add_decayed_weights(settings.weight_decay, mask))
    if rates.whole is not None:
        parts.append(scale_by(rates.whole))
    return optax.chain(*parts, by_schedule(schedule))


def by_schedule(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate of the `step` that `update` receives."""

    def update(
        updates: Any, state: optax.EmptyState, params: Any = None, *, step: jax.Array | int, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _adam(settings: OptimizerSettings) -> optax.GradientTransformation:
    dtype = jnp.dtype(settings.state_dtype)
    if settings.bias_correction:
        return optax.scale_by_adam(settings.b1, settings.b2, settings.eps, mu_dtype=dtype)

    def init(params: Any) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        b1, b2 = settings.b1, settings.b2
        mu = jax.tree.map(lambda g, m: b1 * m.astype(g.dtype) + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, updates, state.nu)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + settings.eps), mu, nu)
        mu = jax.tree.map(lambda m: m.astype(dtype), mu)
        return scaled, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(init, update)
