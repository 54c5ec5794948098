"""Which runs of a sweep are worked on together, in which share, and what each is known by."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from lmjax.errors import require
from lmjax.runs.sweep_size import size_of
from lmjax.settings import Pretrain, Sweep, SweepRun
from lmjax.settings.recipe_files import to_json


def share_of(sweep: Sweep, shard: tuple[int, int] = (1, 1), together: int = 1) -> list[list[SweepRun]]:
    """The i-th of n shares: runs alone, a trunk and its cooldowns, or runs that train together; the cheapest first.

    Shares are as even in FLOPs as handing the dearest to the least laden makes them.
    """
    share, shares = shard
    require(1 <= share <= shares, "--shard", f"{share}/{shares}", "I/N with I from 1 to N", "use 1/1 for all")
    sizes = {one.name: size_of(one).flops_spent for one in sweep.runs}
    units = _units(sweep, together)
    costs = [sum(sizes[one.name] for one in unit) for unit in units]
    laden, taken = [0.0] * shares, []
    for number in sorted(range(len(units)), key=lambda number: (-costs[number], number)):
        least = laden.index(min(laden))
        laden[least] += costs[number]
        if least == share - 1:
            taken.append(number)
    return [units[number] for number in sorted(taken, key=lambda number: (costs[number], number))]


def _units(sweep: Sweep, together: int) -> list[list[SweepRun]]:
    trunks = {one.trunk for one in sweep.runs}
    ladders = [
        [one, *(other for other in sweep.runs if other.trunk == one.name)] for one in sweep.runs if one.name in trunks
    ]
    alike: dict[Pretrain, list[SweepRun]] = {}
    for one in sweep.runs:
        if not one.trunk and one.name not in trunks:
            alike.setdefault(shared(one), []).append(one)
    groups = [runs[at : at + together] for runs in alike.values() for at in range(0, len(runs), together)]
    return [*ladders, *groups]


def shared(one: SweepRun) -> Pretrain:
    """What runs that train together have in common."""
    stage, default = one.stage, Pretrain()
    optimizer = dataclasses.replace(stage.optimizer, learning_rate=default.optimizer.learning_rate)
    train = dataclasses.replace(stage.train, seed=default.train.seed)
    return dataclasses.replace(stage, name=default.name, optimizer=optimizer, train=train)


def digest(one: SweepRun) -> str:
    """What the run is, by which its row is known: its recipe and its trunk."""
    return hashlib.sha256(f"{one.trunk}\n{to_json(one.stage)}".encode()).hexdigest()[:16]


def digest_of(unit: Sequence[SweepRun]) -> str:
    """What the runs of a unit are together."""
    return hashlib.sha256(" ".join(map(digest, unit)).encode()).hexdigest()[:16]
