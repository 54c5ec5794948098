"""Where arrays lie on a mesh: shardings of parameters, states and batches, and functions compiled with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.data.batch import Batch, BatchSpec
from lmjax.model.sharding import logical_sharding
from lmjax.optim.train_state import TrainState
from lmjax.parallel.axis_rules import flax_rules, partition_spec
from lmjax.parallel.compiler_options import compiler_options
from lmjax.settings import ComputeSettings

ROWS, ROWS_AND_TIME = ("batch",), ("batch", "time")  # the axes along which a field of a batch is cut


class NumberedBatches(Protocol):
    """Batches by their number, as loaders and validation sets have them."""

    def batch_at(self, number: int, rows: slice | None = None, /) -> Batch: ...

    def batch_size_at(self, number: int, /) -> int: ...


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


def batch_sharding(mesh: Mesh, axes: Sequence[str | None] = ROWS_AND_TIME) -> NamedSharding:
    """Of a field of a batch that is cut along its first axes."""
    return NamedSharding(mesh, partition_spec(tuple(axes)))


def abstract_batch(spec: BatchSpec, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, dtypes and shardings of a batch on a mesh."""
    return {
        name: jax.ShapeDtypeStruct(field.shape, field.dtype, sharding=batch_sharding(mesh, field.axes))
        for name, field in spec.items()
    }


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and dtypes with the shardings of another tree like it, or with one sharding for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def abstract_whole(values: Any, mesh: Mesh) -> Any:
    """The shapes, dtypes and shardings of arrays that every device has whole."""
    return with_shardings(values, NamedSharding(mesh, PartitionSpec()))


def place_whole(values: Any, mesh: Mesh) -> Any:
    """A tree of NumPy's arrays or scalars, which all processes have alike, whole on every device of a mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda value: jax.make_array_from_callback(value.shape, whole, lambda _: value), values)


def abstract_params(model: Any, where: Mesh | jax.sharding.Sharding) -> Any:
    """The shapes, dtypes and shardings of a model's parameters, cut over a mesh or all with one sharding."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return with_shardings(
        shapes, parameter_shardings(model.logical_axes(), where) if isinstance(where, Mesh) else where
    )


def abstract_state(model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of a state on a mesh, as a tree of ShapeDtypeStruct. Nothing is allocated."""
    shapes = jax.eval_shape(lambda rng: TrainState.create(model.init(rng), optimizer), jax.random.key(0))
    return with_shardings(shapes, state_shardings(shapes, parameter_shardings(model.logical_axes(), mesh), mesh))


def init_state(model: Any, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """A fresh state, made straight into its shards: no device or host ever holds the whole model."""
    shardings = shardings_of(abstract_state(model, optimizer, mesh))

    def create(rng: jax.Array) -> TrainState:
        return TrainState.create(model.init(rng), optimizer)

    return jax.jit(on_mesh(create, mesh), out_shardings=shardings)(jax.random.key(seed))


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function`, traced with the model's logical axes bound to `mesh`."""

    @functools.wraps(function)
    def bound(*arguments: Any) -> Any:
        with logical_sharding(mesh, flax_rules()):
            return function(*arguments)

    return bound


def jit_step(
    step: Callable[..., Any],
    state: Any,
    mesh: Mesh,
    compute: ComputeSettings = ComputeSettings(),
    *,
    frozen: Sequence[Any] = (),
    batch: Any = None,
) -> Any:
    """(state, *frozen, batch) -> (state, metrics) compiled for a mesh; the state's memory is used again.

    `state` and `frozen` are arrays or their shapes, with shardings. `batch` is the sharding of every field, or a tree
    of them; by default fields are cut along rows and time.
    """
    own, others = shardings_of(state), tuple(map(shardings_of, frozen))
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(own, *others, batch_sharding(mesh) if batch is None else batch),
        out_shardings=(own, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, compute),
    )


def jit_eval(function: Callable[..., Any], mesh: Mesh, *frozen: Any, batch: Any = None) -> Any:
    """(*frozen, batch) -> anything small, compiled for a mesh; the result is whole on every device."""
    shardings = (*map(shardings_of, frozen), batch_sharding(mesh) if batch is None else batch)
    return jax.jit(on_mesh(function, mesh), in_shardings=shardings, out_shardings=NamedSharding(mesh, PartitionSpec()))


def place_rows(batch: Batch, mesh: Mesh) -> Batch:
    """A batch on the mesh, each field cut along its own rows; each process puts the rows that its devices hold."""
    sharding = batch_sharding(mesh, ROWS)

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {name: place(np.asarray(array)) for name, array in batch.items()}


def place_batch(
    read: Callable[[slice], Batch],
    rows: int,
    mesh: Mesh,
    axes: Sequence[str] | Mapping[str, Sequence[str]] = ROWS_AND_TIME,
) -> Batch:
    """A batch of so many rows on the mesh, whose fields are cut along their first axes: `axes`, of all or of each.

    `read` is asked only for the rows that this process's devices hold.
    """
    by_rows = batch_sharding(mesh, ROWS).addressable_devices_indices_map((rows,)).values()
    held = [index[0].indices(rows)[:2] for index in by_rows if index is not None]
    first, last = min(start for start, _ in held), max(stop for _, stop in held)

    def placed(array: np.ndarray, axes: Sequence[str]) -> jax.Array:
        def piece(index: Any) -> Any:
            start, stop, _ = index[0].indices(rows)
            return array[(slice(start - first, stop - first), *index[1:])]

        sharding = batch_sharding(mesh, axes[: array.ndim])
        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, piece)

    local = read(slice(first, last)).items()
    return {name: placed(array, axes[name] if isinstance(axes, Mapping) else axes) for name, array in local}


def placed_batch(
    batches: NumberedBatches,
    number: int,
    mesh: Mesh,
    axes: Sequence[str] | Mapping[str, Sequence[str]] = ROWS_AND_TIME,
) -> Batch:
    """The batch with a number, or of a step, on the mesh; each process reads the rows that its devices hold."""
    return place_batch(lambda rows: batches.batch_at(number, rows), batches.batch_size_at(number), mesh, axes)


def _is_instance(value: Any, kind: type) -> bool:
    return isinstance(value, kind)
