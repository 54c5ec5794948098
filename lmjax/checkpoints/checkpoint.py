"""Checkpoints: written in the background, visible only when whole, verified when read, readable on any mesh.

A folder `checkpoints/<stage>/<step>/` holds the state (step, params, opt_state); as JSON, the resolved recipe, the
tokenizer's files and the version of lmjax; and a digest of every file. Nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lmjax.bucket import CHECKPOINTS, absolute, checkpoints_of, remote_of
from lmjax.checkpoints.digests import (
    CARRIED,
    DIGESTS_FILE,
    EXTRAS_FILE,
    DamagedCheckpointError,
    Digests,
    has_digests,
    verify,
    write_digests,
)
from lmjax.checkpoints.evaluated import BestEvaluated, Evaluated, worth
from lmjax.errors import UserError, clear_disk_errors, is_bucket, means_full_disk, shortened, storage_reason
from lmjax.files import decode_json, read_json, safe_name
from lmjax.optim.train_state import TrainState
from lmjax.settings import CheckpointSettings
from lmjax.version import __version__

STATE, EXTRAS = "state", "extras"
COMMITTED = "commit_success.txt"  # what Orbax writes last, on a bucket, where it cannot rename a folder
OLDER = "name an older step's folder"


class Checkpointer:
    """The checkpoints of one stage. Use as a context manager: leaving it waits for what is being written.

    `report` receives a sentence about each damaged checkpoint that is passed over.
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
            "lmjax": __version__,
            "recipe": recipe_json,
            "tokenizer": _packed(tokenizer_folder) if tokenizer_folder else {},
            CARRIED: DIGESTS_FILE,
        }
        self._saving = 0  # the step whose checkpoint is being written
        keep: list[Any] = [policies.LatestN(settings.keep_last), policies.CustomSteps(settings.at)]
        if settings.keep_every:
            keep.append(policies.EveryNSteps(settings.keep_every))
        if settings.keep_best:
            self._evaluated = Evaluated(folder)
            keep.append(BestEvaluated(self._evaluated, settings.keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_digests,
                create_directories_asynchronously=False,  # threads would wait 300 s for a folder that cannot be made
            ),
        )
        for logger in ("absl", "asyncio"):  # the latter logs a task that Orbax has lost whenever it is collected
            logging.getLogger(logger).addFilter(functools.partial(_not_told_otherwise, folder))
        with clear_disk_errors(folder):
            self._commit_whole()
            self._set_unreadable_aside()
            self._manager = ocp.CheckpointManager(absolute(folder), options=options, item_names=(STATE, EXTRAS))

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
            self._manager.close()
            return
        with contextlib.suppress(Exception):  # of a save: reported already, or hidden by what ends the run
            self._manager.close()

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint; training continues once the state has been copied to the host.

        `metrics` are those that are known already; `evaluated` receives later ones.
        Raises UserError when the disk is full or refuses, for this checkpoint or for the one before it.
        """
        arguments = ocp.args.Composite(
            **{STATE: ocp.args.StandardSave(_tree(state)), EXTRAS: ocp.args.JsonSave(self._extras)}
        )
        self.evaluated(step, metrics or {})
        with clear_disk_errors(self._folder):
            self._manager.wait_until_finished()  # the callback of the save before this one reads its step
            self._saving = step
            self._manager.save(step, args=arguments, force=True)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the number by which the best checkpoints are chosen, of a step that was saved."""
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
        """Returns when everything is on disk. Raises UserError when the disk was full or refused."""
        with clear_disk_errors(self._folder):
            self._manager.wait_until_finished()

    def _write_digests(self) -> None:
        """Called by Orbax on the first process, in the thread that saves, when all files of all processes are written
        and before the checkpoint becomes visible."""
        partial = self._folder / f"{self._saving}{'' if is_bucket(self._folder) else '.orbax-checkpoint-tmp'}"
        if not partial.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(partial))
        write_digests(partial, self._saving)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest whole state, laid out as `abstract` says (shapes, dtypes, shardings); None where there is none.

        Newer ones that are damaged are set aside under another name, because their steps will be saved again. Raises
        UserError when all are damaged, or when shapes differ from the model's.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            checkpoint = Checkpoint(self._folder / str(step))
            try:
                state = TrainState(**checkpoint.restore(_tree(abstract), self._report))
            except DamagedCheckpointError as error:
                self._report(f"{error}; trying the one before it")
            else:
                self._set_aside(steps[:number])
                return state
        if steps:
            raise self._none_is_whole(steps)
        return None

    def _commit_whole(self) -> None:
        """On a bucket, tells Orbax of those with digests: of a run that ended just then, or copied there."""
        if is_bucket(self._folder) and jax.process_index() == 0:
            for path in self._folder.glob("*"):
                if path.name.isdigit() and _is_checkpoint(path) and not (path / COMMITTED).exists():
                    (path / COMMITTED).write_bytes(b"it has its digests")
        if is_bucket(self._folder) and jax.process_count() > 1:
            multihost_utils.sync_global_devices("whole checkpoints are known")

    def _set_unreadable_aside(self) -> None:
        """Sets aside those of older versions, which held their number themselves, where it cannot be read any more."""
        steps = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit() and _is_checkpoint(path)]
        errors: dict[int, str] = {}
        for step in sorted(steps, reverse=True):
            try:
                Checkpoint(self._folder / str(step)).metrics()
            except UserError as error:
                errors[step] = str(error).removesuffix(f"; {OLDER}")
        if errors and len(errors) == len(steps):
            raise self._none_is_whole(steps)
        for reason in errors.values():
            self._report(f"{reason}; it is set aside")
        self._rename(list(errors))

    def _none_is_whole(self, steps: Sequence[int]) -> UserError:
        return UserError(
            f"{self._folder}: none of the checkpoints {sorted(steps)} is whole; delete the folder to start anew"
        )

    def _set_aside(self, damaged: Sequence[int]) -> None:
        self._rename(damaged)
        if damaged:
            self._manager.reload()

    def _rename(self, damaged: Sequence[int]) -> None:
        if damaged and jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are known")
        for step in damaged if jax.process_index() == 0 else ():
            taken = len(list(self._folder.glob(f"{step}.damaged*")))
            (self._folder / str(step)).rename(self._folder / f"{step}.damaged{taken or ''}")
        if damaged and jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")


@functools.cache  # once for each checkpoint
def _to_terminal(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


class Extras(TypedDict):
    """What a checkpoint holds beside the state."""

    lmjax: str  # the version that wrote it
    recipe: str  # JSON
    tokenizer: dict[str, str]  # its files by name, in base64


@dataclass(frozen=True)
class Checkpoint:
    """One step's folder."""

    path: Path

    @property
    def step(self) -> int:
        """By the folder's name, or by its digests where a copy was given another name."""
        if self.path.name.isdigit():
            return int(self.path.name)
        return read_json(self.path / DIGESTS_FILE, Digests, fix="give the folder the number of its step as name")[
            "step"
        ]

    def restore(self, abstract: dict[str, Any], say: Callable[[str], None] = _to_terminal) -> dict[str, Any]:
        """Those of step, params and opt_state that `abstract` names, with its shapes, dtypes and shardings.

        All files are compared with their digests first, by all processes together; where there are none, `say` says so.
        """
        self._verify(say)
        folder = absolute(self.path / STATE)
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

    def _verify(self, say: Callable[[str], None]) -> None:
        count, damage = jax.process_count(), ""
        try:
            if has_digests(self.path):
                verify(self.path, share=(jax.process_index(), count))
            else:
                say(f"{self.path}: written by an older lmjax without digests; it is read, but cannot be verified")
        except DamagedCheckpointError as error:
            damage = str(error)
        if count > 1:
            found = np.flatnonzero(multihost_utils.process_allgather(np.int32(bool(damage))))
            if len(found) and not damage:
                damage = f"{self.path} is damaged, as process {found[0]} found"
        if damage:
            raise DamagedCheckpointError(damage)

    def _read(self, file: Path, form: Any, absent: Any = None) -> Any:
        """A JSON file of the checkpoint, verified; `absent` where it was saved without it. Raises UserError."""
        try:
            if has_digests(self.path):
                verify(self.path, below=file.parent.name)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}; {OLDER}") from error
        if absent is not None and not file.exists():
            return absent
        return read_json(file, form, fix=f"the checkpoint is damaged; {OLDER}")

    def extras(self) -> Extras:
        """The recipe's JSON, the tokenizer's files in base64 and the version. Raises UserError when unreadable."""
        try:
            return self._read(self.path / EXTRAS_FILE, Extras)
        except UserError as error:
            raise UserError(f"{self.path}: damaged: its recipe cannot be read: {error}") from error

    def metrics(self) -> dict[str, float]:
        """The number by which it is compared, under its name; {} where it was not evaluated."""
        return Evaluated(self.path.parent).of(self.step)

    def unpack_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`. Raises UserError where one would be written elsewhere."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.extras()["tokenizer"].items():
            try:
                data = base64.b64decode(content, validate=True)
            except ValueError as error:
                raise UserError(f"{self.path}: the tokenizer's file {shortened(name)} is damaged; {OLDER}") from error
            (folder / safe_name(name, f"{self.path}: tokenizer")).write_bytes(data)


def find_checkpoint(path: Path) -> Checkpoint:
    """The newest whole checkpoint below `path`: a step's folder, a stage's folder or a workdir.

    Where its recipe says checkpoint.select_best, it is the best one instead, and of equals the newest. Raises UserError
    where there is none.
    """
    path = remote_of(path) or path
    if _is_checkpoint(path):
        return Checkpoint(path)
    stages = sorted(path.glob(f"{CHECKPOINTS}/*")) or [path]
    steps = [folder for stage in stages for folder in stage.glob("*") if folder.name.isdigit()]
    steps = [folder for folder in steps if _is_checkpoint(folder)]
    if not steps:
        raise UserError(
            f"{path}: no checkpoint; expected a workdir, a stage's folder or a step's folder that lmjax wrote"
        )
    newest = Checkpoint(max(steps, key=lambda folder: int(folder.name)))
    if not _selects(newest):
        return newest
    beside = [Checkpoint(folder) for folder in steps if folder.parent == newest.path.parent]
    return max(beside, key=lambda found: (worth(found.metrics()), found.step))


def checkpoints_in(workdir: Path) -> list[Checkpoint]:
    """Those of a run's folder, of whatever stage, the newest first."""
    found = [Checkpoint(path) for path in checkpoints_of(workdir).glob("*/*") if path.name.isdigit()]
    found = [checkpoint for checkpoint in found if not is_bucket(checkpoint.path) or _is_checkpoint(checkpoint.path)]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def _is_checkpoint(folder: Path) -> bool:
    """Also one that has lost its state, as opening it reports; on a bucket, one that was written whole."""
    if is_bucket(folder):
        return (folder / DIGESTS_FILE).exists()
    return any((folder / part).exists() for part in (STATE, EXTRAS_FILE, DIGESTS_FILE))


def _selects(newest: Checkpoint) -> bool:
    """Whether its recipe says that the best checkpoint is the one to use."""
    try:
        recipe = decode_json(newest.extras()["recipe"], f"{newest.path}: recipe", dict[str, Any])
    except UserError:  # it is damaged, as opening it reports
        return False
    settings = recipe.get("checkpoint")
    return isinstance(settings, dict) and bool(settings.get("select_best"))


def _root(error: BaseException) -> BaseException:
    """What an error began with: the layers above the storage add little to it."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}


def _not_told_otherwise(folder: Path, record: logging.LogRecord) -> bool:
    """Drops what Orbax logs of a disk that is full or refuses, a traceback per thread, for `save` raises the error.

    Of a checkpoint whose process was killed before the time of its commit was noted, too: nothing reads that time.
    """
    error = record.exc_info[1] if record.exc_info else None
    text = record.getMessage()
    storage = means_full_disk(error or text) or storage_reason(error or text, folder)
    return not storage and not text.startswith("Metadata file does not exist")


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
