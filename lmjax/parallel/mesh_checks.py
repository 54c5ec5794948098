"""What a mesh cuts, whether it does so evenly, and the nearest sizes with which it would.

In: the sizes of a mesh's axes and a recipe's model, data and microbatches. Out: nothing, or a `UserError` every one of
whose suggestions passes the same test, on as many devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmjax.errors import UserError, nearest_sizes
from lmjax.settings import DataSettings, ModelSettings, TrainSettings

ROW_AXES = ("replica", "data", "fsdp")  # over which the rows of a batch are cut
MOST_TRIED = 8  # multiples below a size, and above it
Shape = dict[str, int]


@dataclass(frozen=True)
class Cut:
    """The axes that cut a field of the recipe into parts, and how large it is."""

    axes: tuple[str, ...]
    field: str
    size: int
    microbatches: int = 1  # into which it is cut before

    def parts(self, shape: Shape) -> int:
        return self.microbatches * math.prod(shape[name] for name in self.axes)


@dataclass(frozen=True)
class Whole:
    """The parts of a recipe that hold what is cut."""

    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    section: str = "data"  # what the recipe calls `data`

    def cuts(self) -> Iterator[Cut]:
        """Rows, sequence, heads, feed-forward width, vocabulary and width; sizes that follow from others left out."""
        model, data, rows = self.model, self.data, self.section
        if data.ramp_from is not None:
            yield Cut(ROW_AXES, f"{rows}.ramp_from", data.ramp_from, self.train.parts)
        yield Cut(ROW_AXES, f"{rows}.batch_size", data.batch_size, self.train.parts)
        yield Cut(("sequence",), f"{rows}.sequence_length", data.sequence_length)
        yield Cut(("tensor",), "model.attention.heads", model.attention.heads)
        if model.attention.kv_heads is not None:
            yield Cut(("tensor",), "model.attention.kv_heads", model.attention.kv_heads)
        yield Cut(("tensor",), "model.feed_forward.width", model.feed_forward_width)
        if model.vocab_size is not None:
            yield Cut(("tensor",), "model.vocab_size", model.vocab_size)
        yield Cut(("fsdp",), "model.width", model.width)

    def uneven(self, shape: Shape) -> Cut | None:
        """The first of what a mesh does not cut evenly."""
        return next((cut for cut in self.cuts() if cut.size % cut.parts(shape)), None)

    def takes(self, field: str, size: int, shape: Shape) -> bool:
        """Whether the recipe with another size of a field is one, and is cut evenly."""
        try:
            section, *path = field.split(".")
            changed = _replaced(self, ["data" if section == self.section else section, *path], size)
        except UserError:
            return False
        addressed = changed.model.positions.kind != "learned" or changed.data.sequence_length <= changed.model.context
        return addressed and changed.uneven(shape) is None


def check_whole(shape: Shape, whole: Whole) -> None:
    """Raises UserError where a mesh cuts something unevenly; see `check_mesh`."""
    cut = whole.uneven(shape)
    if cut is None:
        return
    given = [f"mesh.{name} = {shape[name]}" for name in cut.axes if shape[name] > 1]
    given += [f"train.microbatches = {cut.microbatches}"] if cut.microbatches > 1 else []
    expected = "a divisor of" if len(given) == 1 else "a product that divides"
    advice = (
        ", or ".join(_advice(cut, shape, whole)) or "another mesh and other sizes together: no one of them is enough"
    )
    raise UserError(f"{', '.join(given)}: expected {expected} {cut.field} = {cut.size}; use {advice}")


def _advice(cut: Cut, shape: Shape, whole: Whole) -> Iterator[str]:
    for mesh in _meshes(cut, shape, whole)[:1]:
        changed = [f"mesh.{name} = {size}" for name, size in mesh.items() if size != shape[name]]
        yield " with ".join(changed)
    if cut.axes == ROW_AXES:
        counts = [n for n in range(1, cut.size + 1) if cut.size % n == 0]
        fitting = [n for n in counts if whole.takes("train.microbatches", n, shape)]
        if fitting:
            yield f"train.microbatches = {nearest_sizes(cut.microbatches, fitting)}"
    parts = cut.parts(shape)
    first = max(cut.size // parts - MOST_TRIED, 1)
    if cut.field == "model.vocab_size":  # all of whose entries are needed
        first = cut.size // parts + 1
    sizes = range(first * parts, cut.size + MOST_TRIED * parts, parts)
    fitting = [n for n in sizes if whole.takes(cut.field, n, shape)]
    if fitting:
        yield f"{cut.field} = {nearest_sizes(cut.size, fitting)}"


def _meshes(cut: Cut, shape: Shape, whole: Whole) -> list[Shape]:
    """Meshes of as many devices that cut everything evenly: two axes differ, the one at fault by the least factor.

    `replica` stays as it is: it goes across slices.
    """
    found = []
    for axis, other in itertools.permutations([name for name in shape if name != "replica"], 2):
        if axis not in cut.axes or shape[axis] == 1:
            continue
        both = shape[axis] * shape[other]
        changed = (shape | {axis: n, other: both // n} for n in range(1, both + 1) if both % n == 0)
        found += [(abs(math.log(each[axis] / shape[axis])), each) for each in changed if whole.uneven(each) is None]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def _replaced(part: Any, path: list[str], value: int) -> Any:
    name, *rest = path
    return dataclasses.replace(part, **{name: _replaced(getattr(part, name), rest, value) if rest else value})
