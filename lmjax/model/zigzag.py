"""Queries of a causal row, dealt out over devices so that each has as many keys to look at.

Cut in order, the last of n devices has almost twice the mean work, since its queries see the whole row. Cut in 2n
pieces of which device i computes i and 2n - 1 - i, all have the same. Only queries and results travel, half a device's
part of each, inside attention: everything else sees rows in their own order, so that dropout, positions and losses are
those of one device. Of its two pieces a device has the one with an even number first. In and out: one device's part.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128  # a TPU vector register's width, which splash attention's parts of a row must fill


def query_order(length: int, devices: int) -> np.ndarray:
    """The places of a row's queries, [T] int32, as the devices hold them one after the other."""
    size = length // (2 * devices)
    pieces = [piece for device in range(devices) for piece in _held(device, devices)]
    return np.concatenate([np.arange(piece * size, (piece + 1) * size, dtype=np.int32) for piece in pieces])


def deal(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """The pieces that this device computes, from all devices' parts in order; `axis` is time. Under shard_map."""
    halves = jnp.split(x, 2, axis)
    moves = (_moves(parity, devices) for parity in (0, 1))
    dealt = [jax.lax.ppermute(half, mesh_axes, pairs) for half, pairs in zip(halves, moves, strict=True)]
    return jnp.concatenate(dealt, axis)


def collect(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """The inverse of `deal`."""
    halves = jnp.split(x, 2, axis)
    moves = ([(to, home) for home, to in _moves(parity, devices)] for parity in (0, 1))
    back = [jax.lax.ppermute(half, mesh_axes, pairs) for half, pairs in zip(halves, moves, strict=True)]
    return jnp.concatenate(back, axis)


def dealt_from_whole(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """As `deal`, where every device has the whole of x."""
    size = x.shape[axis] // (2 * devices)
    first, second = jnp.asarray([_held(device, devices) for device in range(devices)])[jax.lax.axis_index(mesh_axes)]
    parts = [jax.lax.dynamic_slice_in_dim(x, piece * size, size, axis) for piece in (first, second)]
    return jnp.concatenate(parts, axis)


def _held(device: int, devices: int) -> tuple[int, int]:
    """The even and the odd of a device's two pieces: their sum is odd."""
    pair = (device, 2 * devices - 1 - device)
    return pair if device % 2 == 0 else pair[::-1]


def _moves(parity: int, devices: int) -> list[tuple[int, int]]:
    """From where to where the pieces of this parity go: one leaves every device and one comes to every device."""
    return [(piece // 2, min(piece, 2 * devices - 1 - piece)) for piece in range(parity, 2 * devices, 2)]
