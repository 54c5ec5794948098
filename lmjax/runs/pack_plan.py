"""Into how many parts a slice's hosts are best cut for a sweep, for `lmjax sweep --plan --pack auto`.

In: a sweep's runs and the seconds that each takes on a slice of the size of a part. Out: for each size that divides a
host the chip-hours of the runs and the hours until the last part ends, where every host takes its `--shard` of the runs
and each of its `--pack` parts the next run that no other has taken. Steps alone are counted, as in slice_hours.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmjax.errors import UserError
from lmjax.plan.slices import Slice, find_slice, names
from lmjax.runs.slice_hours import SliceTime
from lmjax.runs.sweep_units import share_of
from lmjax.settings import Sweep, SweepRun


@dataclass(frozen=True)
class Packing:
    """What a sweep takes where each host is cut into so many parts."""

    part: Slice
    per_host: int  # as --pack has it
    hosts: int  # as --shard has it
    chip_hours: float  # of the parts while they train
    hours: float  # until the last part ends
    refused: tuple[tuple[str, str], ...]  # runs that a part cannot train, and why; they are not counted

    @property
    def key(self) -> tuple[int, float, float]:
        """The least is the best: the fewest refused, then the fewest chip-hours, which are those of a token."""
        return len(self.refused), self.chip_hours, self.hours


def parts_of(where: Slice, hosts: int) -> list[Slice]:
    """The slices that divide the chips of one of its hosts evenly, the smallest first."""
    own = where.chips // hosts
    usual = [find_slice(name) for name in names(where.generation)]
    return [part for part in usual if part.chips <= own and own % part.chips == 0]


def packings(
    sweep: Sweep,
    left: Sequence[str],
    where: Slice,
    hosts: int,
    time_on: Callable[[Slice], Callable[[SweepRun], SliceTime]],
    per_host: int | None = None,
) -> list[Packing]:
    """The ways to cut the hosts of a slice, or the one with `per_host` parts, the best first, for the runs in `left`.

    Raises UserError where no slice has the size of a part.
    """
    own = where.chips // hosts
    usual = parts_of(where, hosts)
    parts = [part for part in usual if per_host in (None, own // part.chips)]
    if not parts:
        options = ", ".join(str(own // part.chips) for part in usual) or "none"
        asked = "auto" if per_host is None else per_host
        raise UserError(
            f"--pack {asked} on {where.name}, whose hosts have {own} chips: no {where.generation} slice "
            f"has the size of a part; parts that can be planned: {options}"
        )
    return sorted((_packing(sweep, left, part, own, hosts, time_on(part)) for part in parts), key=lambda one: one.key)


def _packing(
    sweep: Sweep, left: Sequence[str], part: Slice, own: int, hosts: int, time_of: Callable[[SweepRun], SliceTime]
) -> Packing:
    times = {one.name: time_of(one) for one in sweep.runs if one.name in left}
    seconds = {name: time.seconds for name, time in times.items() if time.seconds is not None}
    ends = []
    for host in range(1, hosts + 1):
        units = [sum(seconds.get(one.name, 0.0) for one in unit) for unit in share_of(sweep, (host, hosts))]
        ends.append(_last_end(units, own // part.chips))
    refused = tuple((name, time.refusal) for name, time in times.items() if time.seconds is None)
    return Packing(part, own // part.chips, hosts, sum(seconds.values()) * part.chips / 3600, max(ends) / 3600, refused)


def _last_end(units: Sequence[float], parts: int) -> float:
    """When the last of the parts ends, each of which takes the next unit, in order, when it is done with one."""
    free = [0.0] * parts
    for seconds in units:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def shown(found: Sequence[Packing], where: Slice, runs: int) -> str:
    """A line for each way to cut a host, what a part cannot train, and the flags of the best."""
    lines = [f"{'part':10} {'--pack':>6} {'parts':>6} {'chip-hours':>11} {'hours':>8}"]
    for one in found:
        parts = one.per_host * one.hosts
        refused = f"  {len(one.refused)} of {runs} runs cannot be trained" if one.refused else ""
        lines.append(
            f"{one.part.name:10} {one.per_host:>6} {parts:>6} {one.chip_hours:>11.3g} {one.hours:>8.3g}{refused}"
        )
    for one in found:
        lines += dict.fromkeys(f"{one.part.name}: {name}: {why}" for name, why in one.refused)
    best = found[0]
    shard = f" --shard I/{best.hosts} on host I" if best.hosts > 1 else ""
    size = f"{best.part.chips} chip{'' if best.part.chips == 1 else 's'}"
    lines.append(f"cheapest per token on {where.name}: parts of {size}, --pack {best.per_host}{shard}")
    return "\n".join(lines)


def totals(found: Sequence[Packing]) -> list[dict[str, object]]:
    """The same as plain values, the best first."""
    return [
        {"part": one.part.name, "pack": one.per_host, "hosts": one.hosts, "chip_hours": one.chip_hours}
        | {"hours": one.hours, "refused": dict(one.refused)}
        for one in found
    ]
