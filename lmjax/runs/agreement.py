"""What every process of a run must be about to do alike, as facts that can be compared: recipe, options, code, data.

In: a recipe. Out: for each part, its fields with their values; files by the digest of what this process sees of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lmjax.data.text_sources import checksum
from lmjax.errors import UserError
from lmjax.files import user_path
from lmjax.parallel.rendezvous import Facts
from lmjax.settings import Pipeline, Stage
from lmjax.settings.recipe_files import flat, plain
from lmjax.version import __version__

ABSENT = "not there"
MOST_READ = 64  # files of a folder whose contents are looked at; of the others, names and sizes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def facts_of(recipe: Stage | Pipeline, options: Mapping[str, Any], paths: Iterable[str] = ()) -> Facts:
    """The facts of a run of this recipe with these options of the command, which reads these paths beside."""
    stages = recipe.stages
    fields: dict[str, str] = {}
    for stage in stages:
        prefix = "" if recipe is stage else f"{stage.name}."
        own = flat(plain(stage)) | {"stage": type(stage).__name__}
        fields |= {f"{prefix}{name}": repr(value) for name, value in own.items()}
    if isinstance(recipe, Pipeline):
        fields["stages"] = ", ".join(stage.name for stage in stages)
        fields["measures"] = repr(recipe.measures)
    return {
        "the recipe": fields,
        "the options": {name: repr(value) for name, value in options.items()},
        "lmjax's code": {"version": __version__, "digest": code_digest(Path(__file__).parents[1])},
        "the packages": {name: metadata.version(name) for name in PACKAGES},
        "the data": {path: files_digest(path) for path in sorted(paths_of(stages) | set(paths))},
    }


def code_digest(package: Path) -> str:
    """Of all Python files of the package, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def paths_of(stages: tuple[Stage, ...]) -> set[str]:
    """The files, folders and globs that the stages read, without those that another stage makes."""
    found = {path for stage in stages for path in stage.paths()}
    made = {stage.name for stage in stages}
    return {path for path in found if Path(path).parts[0] not in made}


def files_digest(path: str) -> str:
    """Of what is at a path: names, sizes and, of up to 64 files, what `checksum` reads. ABSENT: no file."""
    try:
        place = user_path(path)
        if place.is_file():
            files = [place]
        elif place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
        else:
            anchor = Path(place.anchor)
            files = sorted(file for file in anchor.glob(str(place.relative_to(anchor))) if file.is_file())
    except (UserError, OSError, ValueError, NotImplementedError):  # no path: whoever opens it says so
        files = []
    if not files:
        return ABSENT
    every = -(-len(files) // MOST_READ)
    digest = hashlib.sha256()
    for number, file in enumerate(files):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        if number % every == 0:
            digest.update(checksum(file).encode())
    return f"{len(files)} files, {digest.hexdigest()[:16]}" if len(files) > 1 else digest.hexdigest()[:16]
