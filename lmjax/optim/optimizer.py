"""Optimizers from a recipe's settings: optax's, with decay masks read off the parameters' logical axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.optim.schedules import Schedule
from lmjax.settings import OptimizerSettings

EMBEDDING_AXES = ("vocab", "positions")


def decay_mask(logical_axes: Any, decay_embeddings: bool) -> Any:
    """True for each parameter that weight decay touches: matrices, and embedding tables only when asked for.

    `logical_axes` is a tree of tuples of axis names. Norms and biases, which have no "embed" axis beside another one,
    are never decayed, nor is anything that stacking over layers merely makes look like a matrix.
    """

    def decays(axes: tuple[str, ...]) -> bool:
        own = [name for name in axes if name != "layers"]
        if any(name in EMBEDDING_AXES for name in own):
            return decay_embeddings
        return "embed" in own and len(own) > 1

    return jax.tree.map(decays, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def make_optimizer(settings: OptimizerSettings, schedule: Schedule, mask: Any) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer, then decoupled weight decay where `mask` is True.

    Weight decay is multiplied by the learning rate (Loshchilov & Hutter 2019). Without bias correction Adam is
    BERT's (Devlin et al. 2019, the released code).
    """
    parts = []
    if settings.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name == "adafactor":
        parts.append(optax.scale_by_factored_rms())
        parts.append(optax.clip_by_block_rms(1.0))
    else:
        parts.append(_adam(settings))
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay, mask))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


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
