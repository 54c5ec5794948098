"""Adafactor against the paper's algorithm in NumPy and against optax; stacks of layers are layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.optim.adafactor import scale_by_adafactor
from lmjax.optim.optimizer import make_optimizer
from lmjax.settings import OptimizerSettings

ROWS, COLUMNS = 130, 160
SETTINGS = OptimizerSettings(name="adafactor", weight_decay=0.0, clip_norm=None)


def gradients(*shape, updates=4):
    """Of very different sizes from row to row and column to column."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-4, 1, (updates, *shape[:-1], 1)) * 10.0 ** rng.uniform(-1, 1, shape[-1:])
    return (rng.normal(size=(updates, *shape)) * sizes).astype(np.float32)


def parameters(*shape, std=0.05):
    return (np.random.default_rng(1).normal(size=shape) * std).astype(np.float32)


def updates_of(axes, param, grads, parameter_scale=True):
    transform = scale_by_adafactor({"x": axes}, parameter_scale)
    state, found = transform.init({"x": param}), []
    update = jax.jit(transform.update)
    for grad in grads:
        step, state = update({"x": grad}, state, {"x": param})
        found.append(np.asarray(step["x"]))
    return np.stack(found), state


def paper(param, grads, factored):
    """Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors), in float64; times -1 and without the rate."""
    row, column, full, found = 0.0, 0.0, 0.0, []
    for t, grad in enumerate(grads.astype(np.float64), start=1):
        decay = 1 - t**-0.8
        square = grad**2 + 1e-30
        if factored:
            row = decay * row + (1 - decay) * square.sum(1)
            column = decay * column + (1 - decay) * square.sum(0)
            second = np.outer(row, column) / row.sum()
        else:
            second = full = decay * full + (1 - decay) * square
        step = grad / np.sqrt(second)
        step /= max(1.0, np.sqrt((step**2).mean()))
        found.append(step * max(1e-3, np.sqrt((param.astype(np.float64) ** 2).mean())))
    return np.stack(found)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("axes", "shape", "factored"),
    [
        (("embed", "mlp"), (ROWS, COLUMNS), True),
        (("vocab", "embed"), (COLUMNS, ROWS), True),
        (("embed", "mlp"), (ROWS, 20), False),  # a side too short to be worth it
        (("norm",), (300,), False),
    ],
)
def test_updates_are_the_papers(axes, shape, factored):
    grads, param = gradients(*shape), parameters(*shape)
    found, _ = updates_of(axes, param, grads)
    close(found, paper(param, grads, factored))


def test_a_parameter_at_zero_still_moves():
    grads = gradients(200)
    found, _ = updates_of(("norm",), np.zeros(200, np.float32), grads)
    np.testing.assert_allclose(np.sqrt((found[0] ** 2).mean()), 1e-3, rtol=1e-5)


def test_a_plain_matrix_is_updated_as_by_optax():
    grads, param = gradients(ROWS, COLUMNS), parameters(ROWS, COLUMNS)
    theirs = optax.adafactor(learning_rate=1.0)
    state, wanted = theirs.init(param), []
    for grad in grads:
        step, state = theirs.update(jnp.asarray(grad), state, param)
        wanted.append(-np.asarray(step))
    close(updates_of(("embed", "mlp"), param, grads)[0], np.stack(wanted))


def test_heads_and_their_dimensions_are_one_side_of_a_matrix():
    grads, param = gradients(ROWS, 5, 32), parameters(ROWS, 5, 32)
    found, state = updates_of(("embed", "heads", "head_dim"), param, grads)
    flat = paper(param.reshape(ROWS, 160), grads.reshape(-1, ROWS, 160), factored=True)
    close(found.reshape(flat.shape), flat)
    assert state.row["x"].shape == (ROWS, 1, 1)
    assert state.column["x"].shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("axes", "shape", "stack"),
    [
        (("layers", "embed", "mlp"), (140, ROWS, COLUMNS), 0),  # more layers than the shortest side that is factored
        (("layers", "norm"), (140, 150), 0),
        (("embed", "pair", "kv_heads", "head_dim"), (ROWS, 2, 4, 40), 1),
    ],
)
def test_each_matrix_of_a_stack_is_updated_as_if_alone(axes, shape, stack):
    grads, param = gradients(*shape, updates=2), parameters(*shape)
    param *= np.linspace(0.1, 10, shape[stack], dtype=np.float32).reshape(
        [-1 if i == stack else 1 for i in range(len(shape))]
    )
    found, _ = updates_of(axes, param, grads)
    for i in (0, shape[stack] - 1):
        alone = tuple(name for k, name in enumerate(axes) if k != stack)
        wanted, _ = updates_of(alone, param.take(i, stack), grads.take(i, stack + 1))
        close(found.take(i, stack + 1), wanted)


def test_the_state_of_a_matrix_is_two_vectors():
    _, state = updates_of(("embed", "mlp"), parameters(ROWS, COLUMNS), gradients(ROWS, COLUMNS, updates=1))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == ROWS + COLUMNS + 1


@pytest.mark.parametrize("parameter_scale", [True, False])
def test_the_recipes_adafactor_has_its_scale_its_rate_and_decoupled_decay(parameter_scale):
    settings = dataclasses.replace(SETTINGS, parameter_scale=parameter_scale, weight_decay=0.5)
    param, grads = parameters(ROWS, COLUMNS), gradients(ROWS, COLUMNS, updates=1)
    optimizer = make_optimizer(
        settings, lambda step: jnp.asarray(0.01 * (step + 1), jnp.float32), {"x": ("embed", "mlp")}
    )
    found, _ = optimizer.update({"x": grads[0]}, optimizer.init({"x": param}), {"x": param}, step=1)
    scale = np.sqrt((param.astype(np.float64) ** 2).mean())
    step = paper(param, grads, factored=True)[0] / (1 if parameter_scale else scale)
    close(np.asarray(found["x"]), -0.02 * (step + 0.5 * param))
