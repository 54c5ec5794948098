"""A run's folder: one run at a time, one recipe for all its runs, and what it is known by."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax

from lmjax.bucket import folder_here, located
from lmjax.checkpoints.checkpoint import checkpoints_in
from lmjax.errors import UserError, is_bucket
from lmjax.files import user_path, write_whole
from lmjax.parallel.processes import is_first
from lmjax.run_files import ANSWERED_FILE, RECIPE_FILE, SUMMARY_FILE
from lmjax.runs.recipe_changes import adopted
from lmjax.settings import Stage
from lmjax.settings.recipe_files import from_json, read_recipe, to_json
from lmjax.training.record import note_changes
from lmjax.version import __version__


@dataclass(frozen=True)
class Begun:
    """The recipe of a workdir's newest steps, and how many they are."""

    recipe: Stage
    step: int


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process holds the lock at `path` while the context lasts; False where another one has it.

    A killed process leaves no lock. Raises UserError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written: {error.strerror}; choose another --workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for this run, by its first process. Raises UserError when another run has it."""
    if not is_first():
        yield
        return
    with held(workdir / ".lock") as mine:
        if not mine:
            raise UserError(f"{workdir}: another run is using it; wait for it, or choose another --workdir")
        yield


def asked_and_here(workdir: Path | str | None, name: str) -> tuple[Path, Path]:
    """The workdir that is asked for, by default runs/NAME, and its folder on this machine, which a bucket has, too."""
    asked = located(user_path(workdir)) if workdir is not None else Path("runs") / name
    return asked, folder_here(asked) if is_bucket(asked) else asked


def begun(workdir: Path) -> Begun | None:
    """The newest steps in the folder and their recipe; None where nothing has been done that a change could spoil.

    The recipe is that of the newest checkpoint that tells one, and not what a run that took no step left behind.
    """
    steps = [checkpoint for checkpoint in checkpoints_in(workdir) if checkpoint.step]
    for checkpoint in steps:
        with contextlib.suppress(UserError):  # damaged: whoever restores it says so
            text = checkpoint.extras()["recipe"]
            return Begun(from_json(text, f"{checkpoint.path}: recipe"), checkpoint.step)
    path = workdir / RECIPE_FILE
    kept = steps or (workdir / SUMMARY_FILE).exists() or (workdir / ANSWERED_FILE).exists()
    if not kept or not path.exists():
        return None
    return Begun(read_recipe(path), steps[0].step if steps else 0)


def claim(workdir: Path, recipe: Stage, force: bool) -> tuple[Stage, list[str]]:
    """Writes the recipe into the folder and gives it back as it is to be run, with the changes since the last run.

    The recipe binds the folder once it has a checkpoint, a summary or answers. Raises UserError for a change that
    the steps so far do not allow, or not without `force`; see lmjax/runs/recipe_changes.py.
    """
    _refuse_others(workdir, recipe)
    try:
        before = begun(workdir)
    except UserError:
        if not force:
            raise
        before = Begun(recipe, 0)
    changes: list[str] = []
    if before is not None:
        recipe, changes = adopted(before.recipe, recipe, before.step, force, workdir)
    if is_first():
        write_whole(workdir / RECIPE_FILE, to_json(recipe))
        note_changes(workdir, None if before is None else before.step, changes)
    return recipe, changes


def _refuse_others(workdir: Path, recipe: Stage) -> None:
    """Raises UserError where the folder holds checkpoints that a run of this recipe would neither read nor resume."""
    stages = {checkpoint.path.parent.name for checkpoint in checkpoints_in(workdir)}
    others = sorted(stages - {recipe.checkpoints_folder})
    if others:
        raise UserError(
            f"{workdir}: holds checkpoints of {' and '.join(map(repr, others))}, which a run of {recipe.name!r} would "
            f"leave unread; choose another --workdir, and name this folder by --start to begin from them"
        )


def environment() -> dict[str, str]:
    """Versions and devices, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    devices = jax.devices()
    return {
        "lmjax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": str(jax.process_count()),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }
