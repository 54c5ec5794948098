"""Where the lines of a run's record go beside its file: TensorBoard, Weights & Biases, Trackio.

A tracker receives what metrics.jsonl does: a step and its numbers, and samples with their prompts. The two services are
packages of their own (`pip install 'lmjax[track]'`), which know from their environment where they write and to whom:
WANDB_MODE=offline and TRACKIO_DIR are theirs. A resumed run is continued in both.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmjax.errors import UserError, require
from lmjax.files import read_json_if_there, write_whole

TENSORBOARD_FOLDER = "tensorboard"
ID_FILE = "tracking.json"  # in the workdir: what the run is called there, the same when it is resumed


class Tracker(Protocol):
    """Receives the lines of a record."""

    def write(self, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracked:
    """What a tracker knows of a run. `next_step` is the first whose line is to come: it forgets later ones."""

    workdir: Path
    name: str
    recipe: dict[str, Any]  # plain values
    next_step: int


def require_trackers(names: Sequence[str]) -> None:
    """Raises UserError for trackers whose package is not installed."""
    for name in names:
        there = importlib.util.find_spec(name) is not None
        require(there, "log.trackers", name, f"the package {name}", "install it: pip install 'lmjax[track]'")


def open_trackers(names: Sequence[str], run: Tracked, *, tensorboard: bool) -> list[Tracker]:
    """The trackers of a run. Raises UserError where one cannot begin."""
    require_trackers(names)
    opened: list[Tracker] = [_Events(run)] if tensorboard else []
    return opened + [_Service(name, _BEGIN[name], run) for name in names]


class _Events:
    """TensorBoard events, written in this thread: an error, such as a full disk, is raised and not lost."""

    def __init__(self, run: Tracked) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        folder = run.workdir / TENSORBOARD_FOLDER
        folder.mkdir(exist_ok=True)
        self._proto = event_pb2
        # The library's names tell seconds; a run that is resumed within one must not overwrite the file.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # Tells TensorBoard to forget what an earlier run wrote from this step on.
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(run.next_step, session_log=started)
        self._writer.flush()

    def write(self, step: int, values: dict[str, Any]) -> None:
        from tensorboardX import summary

        for name, value in values.items():
            if name == "sample":
                self._add(step, summary=summary.text("sample", f"{values.get('prompt', '')}{value}"))
            elif isinstance(value, int | float):
                self._add(step, summary=summary.scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))


class _Service:
    """A run of a service whose package has `init`, `log` and `finish`."""

    def __init__(self, name: str, begin: Callable[[Any, Tracked, str], Any], run: Tracked) -> None:
        self._package = importlib.import_module(name)
        try:
            begin(self._package, run, _id_of(run))
        except UserError:
            raise
        except Exception as error:  # whatever the service refuses: no login, no network
            fix = "log in to it, or leave it out"
            raise UserError(f"log.trackers: {name} cannot begin: {error}; {_OFFLINE.get(name, fix)}") from error

    def write(self, step: int, values: dict[str, Any]) -> None:
        kept: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if "sample" in values:
            kept["sample"] = f"{values.get('prompt', '')}{values['sample']}"
        self._package.log(kept, step=step)

    def close(self) -> None:
        self._package.finish()


def _id_of(run: Tracked) -> str:
    """What the run is called in a service: made once, and kept in its workdir."""
    path = run.workdir / ID_FILE
    known = read_json_if_there(path, dict[str, str], "delete the file") or {}
    if "id" not in known:
        known = {"id": uuid.uuid4().hex[:8]}
        write_whole(path, json.dumps(known))
    return known["id"]


def _begin_wandb(wandb: Any, run: Tracked, own: str) -> None:
    quiet = wandb.Settings(silent=True, console="off")
    wandb.init(
        project="lmjax", name=run.name, id=own, resume="allow", dir=str(run.workdir), config=run.recipe, settings=quiet
    )


def _begin_trackio(trackio: Any, run: Tracked, own: str) -> None:
    trackio.init(project="lmjax", name=f"{run.name}-{own}", resume="allow", config=run.recipe)


_BEGIN = {"wandb": _begin_wandb, "trackio": _begin_trackio}
_OFFLINE = {"wandb": "log in (wandb login), or keep it on this machine (WANDB_MODE=offline)"}
