"""Queries of a causal row, distributed over devices so that each attends to equally many keys.

In contiguous shards, the last of n devices has almost twice the mean work, since its queries see the whole row. With 2n
pieces, of which device i computes i and 2n - 1 - i, all devices have the same work. Only queries and results are
exchanged, half a device's shard of each, inside attention: everything else has rows in their order, so that dropout,
positions and losses are those of one device. A device stores its piece of even index before that of odd index. In and
out: one device's shard.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128  # the width of a TPU vector register, of which splash attention's shards of a row are multiples


def query_order(length: int, devices: int) -> np.ndarray:
    """The indices of a row's queries, [T] int32, in the order of the devices that compute them."""
    size = length // (2 * devices)
    pieces = [piece for device in range(devices) for piece in _pieces(device, devices)]
    return np.concatenate([np.arange(piece * size, (piece + 1) * size, dtype=np.int32) for piece in pieces])


def deal(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """The pieces that this device computes, from all devices' contiguous shards; `axis` is time. Under shard_map."""
    halves = jnp.split(x, 2, axis)
    moves = (_moves(parity, devices) for parity in (0, 1))
    pieces = [jax.lax.ppermute(half, mesh_axes, pairs) for half, pairs in zip(halves, moves, strict=True)]
    return jnp.concatenate(pieces, axis)


def collect(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """The inverse of `deal`."""
    halves = jnp.split(x, 2, axis)
    moves = ([(target, source) for source, target in _moves(parity, devices)] for parity in (0, 1))
    halves = [jax.lax.ppermute(half, mesh_axes, pairs) for half, pairs in zip(halves, moves, strict=True)]
    return jnp.concatenate(halves, axis)


def deal_replicated(x: jax.Array, axis: int, mesh_axes: Any, devices: int) -> jax.Array:
    """As `deal`, for an x that is replicated on all devices."""
    size = x.shape[axis] // (2 * devices)
    first, second = jnp.asarray([_pieces(device, devices) for device in range(devices)])[jax.lax.axis_index(mesh_axes)]
    parts = [jax.lax.dynamic_slice_in_dim(x, piece * size, size, axis) for piece in (first, second)]
    return jnp.concatenate(parts, axis)


def _pieces(device: int, devices: int) -> tuple[int, int]:
    """A device's piece of even index and its piece of odd index: their sum is odd."""
    pair = (device, 2 * devices - 1 - device)
    return pair if device % 2 == 0 else pair[::-1]


def _moves(parity: int, devices: int) -> list[tuple[int, int]]:
    """The (source, target) devices of the pieces of this parity: every device sends one and receives one."""
    return [(piece // 2, min(piece, 2 * devices - 1 - piece)) for piece in range(parity, 2 * devices, 2)]
