"""Checkpoints: written in the background, visible only when whole, readable on any mesh.

A folder `checkpoints/<stage>/<step>/` holds the state (step, params, opt_state) and, as JSON, the resolved recipe, the
tokenizer's files and the version of lmjax. Nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

import lmjax
from lmjax.errors import UserError, clear_disk_errors, means_full_disk
from lmjax.files import check_form, safe_name
from lmjax.settings import CheckpointSettings
from lmjax.training.evaluated import BestEvaluated, Evaluated, worth
from lmjax.training.state import TrainState

STATE, EXTRAS = "state", "extras"


class Checkpointer:
    """The checkpoints of one stage. Use as a context manager: leaving it waits for what is being written.

    `report` is told, in a sentence, of a damaged checkpoint that was passed over.
    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        *,
        recipe_json: str,
        tokenizer_folder: Path | None,
        report: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._report = report
        self._best_by = settings.best_by
        self._evaluated: Evaluated | None = None
        self._extras = {
            "lmjax": lmjax.__version__,
            "recipe": recipe_json,
            "tokenizer": _packed(tokenizer_folder) if tokenizer_folder else {},
        }
        keep: list[Any] = [policies.LatestN(settings.keep_last)]
        if settings.keep_every:
            keep.append(policies.EveryNSteps(settings.keep_every))
        if settings.keep_best:
            self._evaluated = Evaluated(folder)
            keep.append(BestEvaluated(self._evaluated, settings.keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )
        for logger in ("absl", "asyncio"):  # the latter tells of a task that Orbax has lost whenever it is collected
            logging.getLogger(logger).addFilter(_not_told_otherwise)
        with clear_disk_errors(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_names=(STATE, EXTRAS))

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        self._manager.close()

    def save(self, state: TrainState, step: int, metrics: dict[str, float]) -> None:
        """Starts writing a checkpoint; training goes on once the state has been copied to the host.

        `metrics` are those that are known already: `evaluated` tells of later ones.
        Raises UserError when the disk is full, for this checkpoint or for the one before it.
        """
        arguments = ocp.args.Composite(
            **{STATE: ocp.args.StandardSave(_tree(state)), EXTRAS: ocp.args.JsonSave(self._extras)}
        )
        self.evaluated(step, metrics)
        with clear_disk_errors(self._folder):
            self._manager.save(step, args=arguments, force=True)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Keeps the number by which the best checkpoints are told, of a step that was saved."""
        if self._evaluated is not None:
            known: dict[str, float] = {self._best_by: float(metrics[self._best_by])} if self._best_by in metrics else {}
            with clear_disk_errors(self._folder):
                self._evaluated.note(step, known, self._manager.all_steps())

    def replace(self, state: TrainState, step: int) -> None:
        """Writes the newest checkpoint, of this step, anew."""
        self.wait()
        with clear_disk_errors(self._folder):
            self._manager.delete(step)
        self.save(state, step, {})

    def wait(self) -> None:
        """Returns when everything is on disk. Raises UserError when the disk was full."""
        with clear_disk_errors(self._folder):
            self._manager.wait_until_finished()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest whole state, laid out as `abstract` says (shapes, dtypes, shardings); None where there is none.

        Newer ones that are damaged are set aside under another name, because their steps will be saved again. Raises
        UserError when all are damaged, or when shapes differ from the model's.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            checkpoint = Checkpoint(self._folder / str(step))
            try:
                state = TrainState(**checkpoint.restore(_tree(abstract)))
            except DamagedCheckpointError as error:
                self._report(f"{error}; trying the one before it")
            else:
                self._set_aside(steps[:number])
                return state
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {sorted(steps)} is whole; delete the folder to start anew"
            )
        return None

    def _set_aside(self, damaged: Sequence[int]) -> None:
        for step in damaged if jax.process_index() == 0 else ():
            taken = len(list(self._folder.glob(f"{step}.damaged*")))
            (self._folder / str(step)).rename(self._folder / f"{step}.damaged{taken or ''}")
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be read back."""


@dataclass(frozen=True)
class Checkpoint:
    """One step's folder."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name)

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """Those of step, params and opt_state that `abstract` names, with its shapes, dtypes and shardings."""
        folder = (self.path / STATE).absolute()
        handler = ocp.PyTreeCheckpointHandler()
        try:
            with ocp.Checkpointer(handler) as reader:
                saved = handler.metadata(folder).tree
                _same_shapes(self.path, {name: saved[name] for name in abstract}, abstract)
                arguments = ocp.args.PyTreeRestore(
                    item=abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                    partial_restore=True,
                )
                return reader.restore(folder, args=arguments)
        except UserError:
            raise
        except Exception as error:  # whatever the storage layers raise, the checkpoint cannot be read
            reason = str(_root(error)).strip().split("\n")[0][:200]
            raise DamagedCheckpointError(f"{self.path} is damaged: {reason}") from error

    def extras(self) -> dict[str, Any]:
        """The recipe's JSON, the tokenizer's files in base64 and the version. Raises UserError when unreadable."""
        try:
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                return reader.restore((self.path / EXTRAS).absolute(), args=ocp.args.JsonRestore())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: damaged: its recipe cannot be read: {error}") from error

    def metrics(self) -> dict[str, float]:
        """The number that it is told apart by, by its name; nothing where it was not evaluated."""
        return Evaluated(self.path.parent).of(self.step)

    def unpack_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        files = check_form(
            self.extras().get("tokenizer"), dict[str, str], self.path, "tokenizer", "restore the checkpoint"
        )
        for name, content in files.items():
            try:
                data = base64.b64decode(content, validate=True)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{self.path}: the tokenizer's file {name!r} is damaged; restore the checkpoint"
                ) from error
            (folder / safe_name(name, f"{self.path}: tokenizer")).write_bytes(data)


def find_checkpoint(path: Path) -> Checkpoint:
    """The newest whole checkpoint below `path`: a step's folder, a stage's folder or a workdir.

    Where its recipe says checkpoint.select_best, it is the best one instead, and of equals the newest. Raises UserError
    where there is none.
    """
    if (path / STATE).is_dir():
        return Checkpoint(path)
    stages = sorted(path.glob("checkpoints/*")) or [path]
    steps = [
        folder for stage in stages for folder in stage.glob("*") if folder.name.isdigit() and (folder / STATE).is_dir()
    ]
    if not steps:
        raise UserError(
            f"{path}: no checkpoint; expected a workdir, a stage's folder or a step's folder that lmjax wrote"
        )
    newest = Checkpoint(max(steps, key=lambda folder: int(folder.name)))
    if not _selects(newest):
        return newest
    beside = [Checkpoint(folder) for folder in steps if folder.parent == newest.path.parent]
    return max(beside, key=lambda found: (worth(found.metrics()), found.step))


def _selects(newest: Checkpoint) -> bool:
    """Whether its recipe says that the best checkpoint is the one to use."""
    try:
        recipe = json.loads(newest.extras()["recipe"])
    except UserError:  # it is damaged: whoever opens it is told so
        return False
    return bool(recipe.get("checkpoint", {}).get("select_best"))


def _root(error: BaseException) -> BaseException:
    """What an error began with: the layers above the storage add little to it."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _not_told_otherwise(record: logging.LogRecord) -> bool:
    """Drops what Orbax logs of a full disk, a traceback per thread, for the error itself comes out of `save`; of a
    checkpoint whose process was killed before the time of its commit was noted, which nobody asks for."""
    error = record.exc_info[1] if record.exc_info else None
    text = record.getMessage()
    return not means_full_disk(error or text) and not text.startswith("Metadata file does not exist")


def _packed(folder: Path) -> dict[str, str]:
    return {file.name: base64.b64encode(file.read_bytes()).decode() for file in sorted(folder.iterdir())}


def _same_shapes(where: Path, saved: Any, abstract: Any) -> None:
    have = {jax.tree_util.keystr(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(saved)}
    want = {_plain_path(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(abstract)}
    for name, shape in want.items():
        if name not in have:
            raise UserError(f"{where}: no {name}; expected shape {shape}; is this a checkpoint of the same model?")
        if have[name] != shape:
            raise UserError(f"{where}: {name} has shape {have[name]}; expected {shape}; is this the same recipe?")


def _plain_path(path: Any) -> str:
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path]
    return "".join(f"[{key!r}]" for key in keys)
