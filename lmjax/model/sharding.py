"""Binds the model's logical axis names to a mesh while a function is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DECODED_ROWS = 64  # that a device has at most where axes of "fsdp" become axes of "tensor" for decoding

AxisRules = tuple[tuple[str, tuple[str, ...] | None], ...]


@dataclass(frozen=True)
class BoundMesh:
    """The mesh to which logical axes are bound, and the rules from logical to mesh axes."""

    mesh: Mesh
    rules: AxisRules

    def spec(self, *logical: str | None) -> PartitionSpec:
        """The sharding of an array whose axes have these names."""
        table = dict(self.rules)
        return PartitionSpec(*(None if name is None else table[name] for name in logical))

    def size(self, logical: str) -> int:
        """The number of shards of an axis of this name."""
        axes = dict(self.rules)[logical] or ()
        size = 1
        for axis in axes:
            size *= self.mesh.shape[axis]
        return size

    def for_decoding(self, rows: int, divided: Sequence[int], vocab: int) -> BoundMesh:
        """The same devices for the products of single tokens of `rows` rows: no width is cut, so nothing is gathered.

        While a device has fewer rows than a matrix unit, it waits for matrices, and axes of "fsdp" become axes of
        "tensor": each device then reads fewer matrices, for more rows. `divided` are the sizes that "tensor" cuts, and
        `vocab` is another where it can be cut.
        """
        shape, grid = dict(self.mesh.shape), self.mesh.devices
        most = DECODED_ROWS * self.size("batch") // rows

        def fits(times: int) -> bool:
            parts = shape["tensor"] * times
            return times <= most and shape["fsdp"] % times == 0 and all(size % parts == 0 for size in divided)

        times = max((n for n in range(1, shape["fsdp"] + 1) if fits(n)), default=1) if shape["sequence"] == 1 else 1
        shape |= {"fsdp": shape["fsdp"] // times, "tensor": shape["tensor"] * times}
        table = dict(self.rules)
        table |= {"embed": None, "lookup_batch": table["batch"]}
        if vocab % shape["tensor"]:
            table |= dict.fromkeys(("vocab", "head_vocab", "act_vocab"))
        mesh = Mesh(grid.reshape(tuple(shape.values())), tuple(shape), axis_types=self.mesh.axis_types)
        return BoundMesh(mesh, tuple(table.items()))

    def per_shard(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`function` run on every device's shard: for calls that the compiler cannot shard, such as Pallas kernels."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


_bound: ContextVar[BoundMesh | None] = ContextVar("bound_mesh", default=None)


@contextmanager
def logical_sharding(mesh: Mesh, rules: AxisRules) -> Iterator[None]:
    """In this context, constraints on logical axes apply to `mesh` by `rules`; outside they have no effect."""
    token = _bound.set(BoundMesh(mesh, rules))
    try:
        yield
    finally:
        _bound.reset(token)


def bound_mesh() -> BoundMesh | None:
    """The mesh that `logical_sharding` has bound, or None outside of it."""
    return _bound.get()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """x, sharded over the bound mesh by its axes' names; x itself if no mesh is bound."""
    bound = bound_mesh()
    if bound is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(bound.mesh, bound.spec(*logical)))


def constrain_stream(x_BTD: jax.Array) -> jax.Array:
    """The residual stream between two branches, whose rows are cut over "tensor", too, where that divides them.

    Sums over shards become reduce-scatters, and a branch gathers its input (Korthikanti et al. 2022, section 4.2.2).
    """
    return constrain(x_BTD, *_stream(x_BTD))


def row_major_stream(x_BTD: jax.Array) -> jax.Array:
    """`constrain_stream`, and on every device `row_major`, where the mesh divides the rows and their tokens."""
    bound, axes = bound_mesh(), _stream(x_BTD)
    if bound is None:
        return row_major(x_BTD)
    if any(size % bound.size(axis) for size, axis in zip(x_BTD.shape, axes, strict=True)):
        return constrain(x_BTD, *axes)
    spec = bound.spec(*axes)
    return bound.per_shard(row_major, (spec,), spec)(x_BTD)


def row_major(x: jax.Array) -> jax.Array:
    """x, in memory with its last axis fastest, and so its gradient.

    Where a device has one row, or a few long ones, the TPU's compiler otherwise lays out the residual stream and what
    attention gives with time fastest in the forward pass, and transposes what it kept in the backward pass. Of an array
    that is sharded, each shard has to be asked for: the partitioner makes other collectives around a layout's request.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _stream(x_BTD: jax.Array) -> tuple[str, str, str]:
    bound = bound_mesh()
    even = bound is not None and x_BTD.shape[1] % bound.size("stream_time") == 0
    return "batch", "stream_time" if even else "time", "act_embed"
