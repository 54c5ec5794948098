"""Makes the model's logical axis names mean a mesh while a function is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import flax.linen as nn
from jax.sharding import Mesh

AxisRules = tuple[tuple[str, tuple[str, ...] | None], ...]


@contextmanager
def logical_sharding(mesh: Mesh, rules: AxisRules) -> Iterator[None]:
    """Inside, constraints on logical axes bind to `mesh` by `rules`; outside they do nothing."""
    with mesh, nn.logical_axis_rules(rules):
        yield
