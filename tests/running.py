"""Runs of tiny recipes: on a few devices, interrupted at a line of the record, and compared by what they leave."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.parallel.mesh import make_mesh
from lmjax.training.record import Recorder, read_metrics


def on_devices(patch: pytest.MonkeyPatch, count: int = 2) -> None:
    """What runs from here on has a mesh of the first `count` devices."""
    patch.setattr("lmjax.tasks.resolved.make_mesh", lambda settings: make_mesh(settings, jax.devices()[:count]))


def without_charts(patch: pytest.MonkeyPatch) -> None:
    """Reports are written as ever, but nothing is drawn in them: drawing takes a third of a short run."""
    patch.setattr("lmjax.report.charts._rendered", lambda *chart, **options: b"<svg></svg>")


@contextlib.contextmanager
def at_line(step: int, act: Callable[[], Any]) -> Iterator[None]:
    """Calls `act` when the line of a step has been written, which is when the step after it is under way."""
    with pytest.MonkeyPatch.context() as patch:
        write = Recorder.write

        def acting(recorder: Recorder, at: int, values: dict) -> None:
            write(recorder, at, values)
            if at == step and "loss" in values:
                act()

        patch.setattr(Recorder, "write", acting)
        yield


def interrupted(step: int, *signals: int) -> contextlib.AbstractContextManager[None]:
    """Sends this process signals when the line of a step has been written."""
    return at_line(step, lambda: [os.kill(os.getpid(), number) for number in signals])


def lines_of(folder: Path, name: str = "loss") -> list[dict]:
    """The lines of a run's record that have a value of that name."""
    return [line for line in read_metrics(folder) if name in line]


def values_of(folder: Path, name: str) -> dict[int, Any]:
    """The values of that name in a run's record, by step; of a step's several lines the last."""
    return {line["step"]: line[name] for line in lines_of(folder, name)}


def saved_steps(folder: Path, stage: str = "pretrain") -> list[int]:
    """The steps of the checkpoints that a run has kept."""
    return sorted(int(path.name) for path in (folder / "checkpoints" / stage).iterdir() if path.name.isdigit())


def saved_parameter(folder: Path, *path: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """One parameter of the newest checkpoint, by the names on the way to it."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like: Any = jax.ShapeDtypeStruct(shape, "float32", sharding=one)
    for name in reversed(path):
        like = {name: like}
    found = find_checkpoint(folder).restore({"params": like})["params"]
    for name in path:
        found = found[name]
    return np.asarray(found)


def assert_same_bits(a: Any, b: Any) -> None:
    """Two trees of arrays have the same places, shapes, types and bits."""
    places = [[place for place, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in (a, b)]
    assert places[0] == places[1]
    for place, x, y in zip(places[0], jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), jax.tree_util.keystr(place)
