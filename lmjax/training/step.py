"""The step-maker: from a loss and an optimizer to a pure function (state, batch) -> (state, metrics).

The same function runs eagerly, under jit over any mesh, and, given the name of the mapped axis, under shard_map and
pmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.data.batch import Batch
from lmjax.objective.weighted import LossFunction, Weighted
from lmjax.optim.schedules import Schedule
from lmjax.optim.train_state import TrainState

Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    seed: int | jax.Array = 0,
    schedule: Schedule | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Step:
    """A pure training step.

    The batch is cut into `microbatches` parts whose loss sums, weights and gradients of sums are added up; the one
    division is by the weight of the whole batch, over all devices. Its rng is fold_in(key(seed), step), and one more
    fold per microbatch; `seed` may be traced, as an int32 scalar. A step whose loss or gradient is not finite leaves
    parameters and optimizer state as they were and counts 1 in `skipped`. The optimizer's `update` receives the `step`.

    Under shard_map or pmap, `axis_name` is the axis, or axes, over which to sum; the state is the same on every
    device, and each device draws dropout of its own.

    Metrics: the loss function's, as (sum, weight), `loss`, and the scalars `grad_norm`, `skipped`, `learning_rate`.
    """

    def sums(params: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Weighted, dict[str, Weighted]]:
        def total(params: Any) -> tuple[jax.Array, tuple[Weighted, dict[str, Weighted]]]:
            loss, metrics = loss_fn(params, batch, rng)
            return loss.sum, (loss, metrics)

        (_, (loss, metrics)), grads = jax.value_and_grad(total, has_aux=True)(params)
        return grads, loss, metrics

    optimizer = optax.with_extra_args_support(optimizer)

    def global_sums(state: TrainState, batch: Batch) -> tuple[Any, Weighted, dict[str, Weighted]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if axis_name is None:
            return _accumulated(sums, state.params, batch, rng, microbatches)
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        # Without the cast, shard_map would sum the gradient of what all devices share before it is summed here.
        params = jax.lax.pcast(state.params, axis_name, to="varying")
        return jax.lax.psum(_accumulated(sums, params, batch, rng, microbatches), axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, loss, metrics = global_sums(state, batch)
        scale = jnp.where(loss.weight == 0, 0.0, 1.0 / jnp.where(loss.weight == 0, 1.0, loss.weight))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss.sum)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        scalars = {"grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
        if schedule is not None:
            scalars["learning_rate"] = schedule(state.step)
        return TrainState(state.step + 1, params, opt_state), {"loss": loss} | metrics | scalars

    return step


def make_eval_step(loss_fn: LossFunction) -> Callable[[Any, Batch], dict[str, Weighted]]:
    """A pure function (params, batch) -> metrics, without dropout; all are (sum, weight) and `loss` is among them."""

    def step(params: Any, batch: Batch) -> dict[str, Weighted]:
        loss, metrics = loss_fn(params, batch, None)
        return {"loss": loss} | metrics

    return step


def _accumulated(sums: Callable[..., Any], params: Any, batch: Batch, rng: jax.Array, parts: int) -> Any:
    """Adds `sums` up over the parts of a batch. Row i goes to part i mod `parts`: every device keeps its rows."""
    if parts == 1:
        return sums(params, batch, rng)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    pieces = jax.tree.map(cut, batch)

    def add(total: Any, piece: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, part = piece
        return jax.tree.map(jnp.add, total, sums(params, part, jax.random.fold_in(rng, index))), None

    one = jax.tree.map(lambda x: x[0], pieces)
    like = jax.tree.leaves(one)[0]  # zeros made like it vary over the devices of a shard_map as it does
    shapes = jax.eval_shape(sums, params, one, rng)
    zero = jax.tree.map(lambda x: jnp.zeros_like(like, shape=x.shape, dtype=x.dtype), shapes)
    return jax.lax.scan(add, zero, (jnp.arange(parts), pieces))[0]
