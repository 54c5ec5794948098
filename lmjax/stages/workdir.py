"""A run's folder: one run at a time, one recipe for all its runs, and what it is known by."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import jax

import lmjax
from lmjax.errors import UserError
from lmjax.files import write_whole
from lmjax.parallel.multihost import is_first
from lmjax.recipe import Stage, difference, read_recipe, to_json

RECIPE_FILE, SUMMARY_FILE, ENVIRONMENT_FILE = "recipe.json", "summary.json", "environment.json"
PIPELINE_FILE = "pipeline.json"  # in a pipeline's workdir: the names of its stages, in order


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for this run, by its first process. Raises UserError when another run has it.

    A killed run leaves no lock.
    """
    if not is_first():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written: {error.strerror}; choose another --workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{workdir}: another run is using it; wait for it, or choose another --workdir") from error
        yield


def claim(workdir: Path, recipe: Stage, force: bool) -> None:
    """Writes the recipe into the folder. Raises UserError, with the fields that differ, where it has another one."""
    path = workdir / RECIPE_FILE
    if path.exists() and not force:
        changed = difference(read_recipe(path), recipe)
        if changed:
            fields = "\n  ".join(changed)
            raise UserError(
                f"{workdir}: its recipe differs from this one in\n  {fields}\n"
                "choose another --workdir, or go on with the new recipe by --force"
            )
    if is_first():
        write_whole(path, to_json(recipe))


def environment() -> dict[str, str]:
    """Versions and devices, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    devices = jax.devices()
    return {
        "lmjax": lmjax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": str(jax.process_count()),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }
