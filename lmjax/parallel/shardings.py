"""Shardings of parameters, optimizer state and batches, and functions compiled with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.data.batch import Batch
from lmjax.model.language_model import LanguageModel
from lmjax.model.sharding import logical_sharding
from lmjax.optim.train_state import TrainState
from lmjax.parallel.axis_rules import flax_rules, partition_spec
from lmjax.parallel.compiler_options import compiler_options
from lmjax.settings import ComputeSettings


def parameter_shardings(logical_axes: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of logical axis names."""
    is_leaf = functools.partial(_is_instance, kind=tuple)
    return jax.tree.map(lambda axes: NamedSharding(mesh, partition_spec(axes)), logical_axes, is_leaf=is_leaf)


def state_shardings(abstract: TrainState, params: Any, mesh: Mesh) -> TrainState:
    """Shardings of a state: whatever has a parameter's place and shape is cut like it, and the rest is on all devices.

    `abstract` is the state's shapes, `params` the shardings of its parameters. A shape may also be a parameter's with
    some axes reduced to 1, as in Adafactor's factored moments: these axes are whole, the others cut.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    by_path = dict(jax.tree_util.tree_leaves_with_path(params))
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)}

    def choose(path: Any, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape = shapes.get(path[start:])
            if shape is not None and _reduces(leaf.shape, shape):
                axes = zip(by_path[path[start:]].spec, leaf.shape, shape, strict=True)
                return NamedSharding(mesh, PartitionSpec(*(cut if size == full else None for cut, size, full in axes)))
        return whole

    return jax.tree_util.tree_map_with_path(choose, abstract)


def _reduces(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) == len(full) and all(size in (1, whole) for size, whole in zip(shape, full, strict=True))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field of a batch, [B, T]."""
    return NamedSharding(mesh, partition_spec(("batch", "time")))


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function`, traced with the model's logical axes bound to `mesh`."""

    @functools.wraps(function)
    def bound(*arguments: Any) -> Any:
        with logical_sharding(mesh, flax_rules()):
            return function(*arguments)

    return bound


def abstract_state(model: LanguageModel, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of a state on a mesh, as a tree of ShapeDtypeStruct. Nothing is allocated."""

    def create(rng: jax.Array) -> TrainState:
        return TrainState.create(model.init(rng), optimizer)

    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = state_shardings(shapes, parameter_shardings(model.logical_axes(), mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def init_state(model: LanguageModel, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A fresh state, made straight into its shards: no device or host ever holds the whole model."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer, mesh))

    def create(rng: jax.Array) -> TrainState:
        return TrainState.create(model.init(rng), optimizer)

    return jax.jit(on_mesh(create, mesh), out_shardings=shardings)(jax.random.key(seed))


def jit_step(
    step: Callable[..., Any], state: TrainState, mesh: Mesh, compute: ComputeSettings = ComputeSettings()
) -> Callable[..., Any]:
    """A training step compiled for a mesh: shardings of `state` in and out, the state's memory reused."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, compute),
    )


def jit_eval(step: Callable[..., Any], state: TrainState, mesh: Mesh) -> Callable[[Any, Batch], Any]:
    """An evaluation step (params, batch) -> metrics compiled for a mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(on_mesh(step, mesh), in_shardings=(shardings, batch_sharding(mesh)), out_shardings=whole)


def _is_instance(value: Any, kind: type) -> bool:
    return isinstance(value, kind)


def place_batch(read: Callable[[slice], Batch], rows: int, length: int, mesh: Mesh) -> Batch:
    """A batch of `rows` x `length` on the mesh. `read` is asked only for the rows that this process's devices hold."""
    sharding = batch_sharding(mesh)
    shape = (rows, length)
    indices = sharding.addressable_devices_indices_map(shape).values()
    held = [index[0].indices(rows)[:2] for index in indices if index is not None]
    first, last = min(start for start, _ in held), max(stop for _, stop in held)
    local = read(slice(first, last))

    def piece(array: Any) -> Callable[[Any], Any]:
        def take(index: Any) -> Any:
            start, stop, _ = index[0].indices(rows)
            return array[start - first : stop - first, index[1]]

        return take

    return {name: jax.make_array_from_callback(shape, sharding, piece(array)) for name, array in local.items()}
