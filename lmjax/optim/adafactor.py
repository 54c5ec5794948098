"""Adafactor: the second moment of a matrix kept as one vector per side (Shazeer & Stern 2018, algorithms 4 to 6).

In: gradients, and the parameters' logical axes, which say what the two sides of a matrix are. Out: updates whose root
mean square is 1 at most, times the parameter's own where asked. The layers of a stack, and the two matrices of a
key-value pair, are matrices of their own, so that stacking changes nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

FACTOR_FROM = (
    128  # entries of the shorter side; below it factoring saves little (the released code draws the same line)
)
STACKED = ("layers", "pair")  # axes along which whole matrices lie side by side
DECAY_EXPONENT = 0.8  # the second moment's decay is 1 - t^-0.8 (section 7.2)
EPSILON = 1e-30  # added to squared gradients
CLIP_THRESHOLD = 1.0  # of the update's root mean square (section 6)
LEAST_SCALE = 1e-3  # of a parameter, so that one at 0 can move (section 8)


class AdafactorState(NamedTuple):
    """Means of squared gradients over the columns and over the rows of each matrix, every axis kept, reduced to 1.

    A parameter that is not factored has its full second moment in `row` and the mean of that in `column`.
    """

    updates: jax.Array  # how many there were, int32
    row: Any
    column: Any


class Sides(NamedTuple):
    """The axes of one parameter that make up its rows, its columns, and both."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    own: tuple[int, ...]


def sides(logical_axes: tuple[str, ...], shape: tuple[int, ...]) -> Sides:
    """The two sides of a parameter: "embed" is one, the other axes together are the other.

    Without an "embed" axis the first axis is one. What is no matrix, or has a side below FACTOR_FROM, has no columns.
    """
    own = tuple(i for i, name in enumerate(logical_axes) if name not in STACKED)
    rows = tuple(i for i in own if logical_axes[i] == "embed") or own[:1]
    columns = tuple(i for i in own if i not in rows)
    shorter = min(math.prod(shape[i] for i in side) for side in (rows, columns)) if columns else 0
    return Sides(rows, columns, own) if shorter >= FACTOR_FROM else Sides(own, (), own)


def scale_by_adafactor(logical_axes: Any, parameter_scale: bool) -> optax.GradientTransformation:
    """Adafactor without momentum, learning rate and weight decay.

    `logical_axes` is a tree like the parameters whose leaves are tuples of axis names; `parameter_scale` multiplies
    each update by the root mean square of its parameter, which makes the learning rate a relative one (section 8).
    """
    axes = jax.tree.leaves(logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def init(params: Any) -> AdafactorState:
        leaves, tree = _flatten(params)
        split = [sides(names, p.shape) for names, p in zip(axes, leaves, strict=True)]
        row = [jnp.zeros(_kept(p.shape, side.columns)) for p, side in zip(leaves, split, strict=True)]
        column = [jnp.zeros(_kept(p.shape, side.rows)) for p, side in zip(leaves, split, strict=True)]
        return AdafactorState(jnp.zeros([], jnp.int32), tree.unflatten(row), tree.unflatten(column))

    def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
        number = optax.safe_increment(state.updates)
        decay = 1.0 - number.astype(jnp.float32) ** -DECAY_EXPONENT
        leaves, tree = _flatten(grads)
        rows, columns, old = (tree.flatten_up_to(part) for part in (state.row, state.column, params))
        done = [_updated(*one, decay, parameter_scale) for one in zip(axes, leaves, rows, columns, old, strict=True)]
        updates, row, column = (tree.unflatten(part) for part in zip(*done, strict=True))
        return updates, AdafactorState(number, row, column)

    return optax.GradientTransformation(init, update)


def _updated(
    names: tuple[str, ...],
    grad: jax.Array,
    row: jax.Array,
    column: jax.Array,
    param: jax.Array,
    decay: jax.Array,
    parameter_scale: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One parameter's update, and its new means over columns and rows."""
    side = sides(names, grad.shape)
    square = jnp.square(grad) + EPSILON
    row = decay * row + (1.0 - decay) * square.mean(side.columns, keepdims=True)
    column = decay * column + (1.0 - decay) * square.mean(side.rows, keepdims=True)
    # The square roots apart: the product of two small means would leave float32's range.
    step = grad * jax.lax.rsqrt(row / row.mean(side.rows, keepdims=True)) * jax.lax.rsqrt(column)
    step = step / jnp.maximum(1.0, _root_mean_square(step, side.own) / CLIP_THRESHOLD)
    if parameter_scale:
        step = step * jnp.maximum(_root_mean_square(param, side.own), LEAST_SCALE)
    return step, row, column


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree)


def _kept(shape: tuple[int, ...], reduced: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in reduced else size for i, size in enumerate(shape))


def _root_mean_square(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))
