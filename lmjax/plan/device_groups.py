"""Which devices a collective of a compiled program joins, in the three forms in which XLA writes them."""

from __future__ import annotations

import math
import re

import numpy as np


def device_group(attributes: str) -> tuple[int, ...]:
    """The devices of a collective's first group; of a permutation, the first pair that differs."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        found = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1))
        return next(((int(a), int(b)) for a, b in found if a != b), ())
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return tuple(int(n) for n in listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        groups, dims, order = (_numbers(text) for text in iota.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return tuple(int(n) for n in devices.transpose(order or None).reshape(groups)[0])
    return _mesh_group(attributes)


def _mesh_group(attributes: str) -> tuple[int, ...]:
    """Of `replica_groups=mesh['a'=4,'b'=2] {'b','a':(1)2}`: part k of n of an axis is written 'a':(before)n."""
    found = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? ?\{([^}]*)\}", attributes)
    if not found:
        return ()
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
    devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    index: list[slice | int] = [0] * len(sizes)
    for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found.group(2)):
        axis = list(sizes).index(name)
        step = sizes[name] // (int(before) * int(part)) if part else 1
        index[axis] = slice(0, step * int(part) if part else None, step)
    return tuple(int(n) for n in devices[tuple(index)].reshape(-1))


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",")) if text else ()
