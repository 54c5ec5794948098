"""What earlier searches compiled, on disk: a second search prints at once, an interrupted one resumes.

In: a recipe and a slice. Out: the estimate of its step, or the compiler's refusal, as JSON in a file that is named by
everything that decides the compiled program and what is read off it. Nothing in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmjax.errors import UserError
from lmjax.fields import check_fields
from lmjax.files import cache_folder, parse_json, write_whole
from lmjax.plan.estimate import AxisTraffic, Estimate
from lmjax.settings import Pretrain
from lmjax.tasks.resolved import known_model, planned_entries
from lmjax.version import __version__

# Fields that leave what a step computes, and so its memory and time, as they are; all others belong to the key.
IRRELEVANT = {
    "": ("name", "tokenizer", "plan", "evaluation", "checkpoint", "log"),
    "data": ("train", "validation", "shuffle", "seed", "prefetch", "ramp_from", "ramp_tokens", "ramp_sizes"),
    "optimizer": ("learning_rate", "schedule"),
    "train": ("steps", "seed", "abort_after_skipped"),
}
# What of the package decides the program, or how it is read.
SOURCES = (
    "settings",
    "model",
    "objective",
    "optim",
    "parallel",
    "plan",
    "stages",
    "tasks",
    "training",
    "data/batch.py",
)


@dataclass(frozen=True)
class Result:
    """What compiling a candidate gave: an estimate, which may be of a step that does not fit, or another refusal."""

    estimate: Estimate | None = None
    refusal: str = ""

    def to_json(self) -> str:
        return json.dumps({"estimate": self.estimate and self.estimate.to_dict(), "refusal": self.refusal})


def from_json(text: str) -> Result:
    """The result that `to_json` wrote. Raises ValueError, KeyError, TypeError or UserError where it is not that."""
    value = parse_json(text)
    figures = value["estimate"]
    if figures is None:
        return Result(refusal=str(value["refusal"]))
    estimate = Estimate(**figures | {"collectives": tuple(AxisTraffic(**each) for each in figures["collectives"])})
    for part in (estimate, *estimate.collectives):
        check_fields(part)
    return Result(estimate)


class Cache:
    """Results by key in a folder, by default lmjax/plans in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""

    def __init__(self, folder: Path | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder or cache_folder() / "plans"
        self.say = say

    def get(self, recipe: Pretrain, topology: str) -> Result | None:
        """What was kept for this recipe on this slice; None where there is nothing that can be read."""
        path = self._path(recipe, topology)
        try:
            found = from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError, UserError) as error:
            self.say(f"{path}: not read ({type(error).__name__}: {error}); it is compiled again")
            return None
        if found.estimate is None:
            return found
        return Result(dataclasses.replace(found.estimate, recipe=recipe.name))

    def put(self, recipe: Pretrain, topology: str, result: Result) -> None:
        """Keeps a result; a file is whole or absent. Raises UserError where the folder cannot be written to."""
        path = self._path(recipe, topology)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, result.to_json())
        except OSError as error:
            fix = "set XDG_CACHE_HOME to a folder that can be written to"
            raise UserError(f"{self.folder}: cannot keep what was compiled: {error}; {fix}") from error

    def _path(self, recipe: Pretrain, topology: str) -> Path:
        return self.folder / f"{key(recipe, topology)}.json"


def key(recipe: Pretrain, topology: str) -> str:
    """A digest of all that decides a recipe's compiled step on a slice and how it is read."""
    fields = dataclasses.asdict(dataclasses.replace(recipe, model=known_model(recipe)))
    for part, names in IRRELEVANT.items():
        for name in names:
            del (fields[part] if part else fields)[name]
    decides = {"recipe": fields, "entries": planned_entries(recipe), "topology": topology, "versions": _versions()}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    """Of the compiler and of this package, whose own sources count: they change before its version does."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")) if (root / source).is_dir() else [root / source]:
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    return packages | {"lmjax": __version__, "sources": digest.hexdigest()}
