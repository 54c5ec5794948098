"""Batches whose fields share their first axis alone: rows over the mesh, and steps that read frozen models beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.data.batch import Batch
from lmjax.parallel.axis_rules import partition_spec
from lmjax.parallel.compiler_options import compiler_options
from lmjax.parallel.shardings import on_mesh
from lmjax.settings import ComputeSettings


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field: its rows are cut, its other axes are not."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def place_rows(batch: Batch, mesh: Mesh) -> Batch:
    """A batch on the mesh; each process puts the rows that its devices hold."""
    sharding = row_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {name: place(np.asarray(array)) for name, array in batch.items()}


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def compile_step(
    step: Callable[..., Any], mesh: Mesh, state: Any, *frozen: Any, compute: ComputeSettings = ComputeSettings()
) -> Callable[..., Any]:
    """(state, *frozen, batch) -> (state, metrics) compiled for a mesh; the state's memory is used again.

    `state` and `frozen` are arrays or their shapes, with shardings.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    own, others = shardings_of(state), tuple(map(shardings_of, frozen))
    return jax.jit(
        on_mesh(step, mesh),
        in_shardings=(own, *others, row_sharding(mesh)),
        out_shardings=(own, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, compute),
    )


def compile_reading(function: Callable[..., Any], mesh: Mesh, *frozen: Any) -> Callable[..., Any]:
    """(*frozen, batch) -> anything small, compiled for a mesh; the result is whole on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = (*map(shardings_of, frozen), row_sharding(mesh))
    return jax.jit(on_mesh(function, mesh), in_shardings=shardings, out_shardings=whole)
