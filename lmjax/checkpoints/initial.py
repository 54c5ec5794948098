"""What a stage is initialised from: a checkpoint, with its model, its tokenizer and the recipe that made it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.bucket import checkpoints_of, located
from lmjax.checkpoints.checkpoint import Checkpoint, DamagedCheckpointError, find_checkpoint
from lmjax.errors import UserError, clear_disk_errors, require
from lmjax.run_files import is_pipeline, stage_names
from lmjax.settings import DialogueSourceSettings, ModelSettings, Stage
from lmjax.settings.recipe_files import from_json
from lmjax.tokenizers.tokenizer import Tokenizer, load_tokenizer, tokenizer_fingerprint


@dataclass(frozen=True)
class InitialCheckpoint:
    """A checkpoint that a stage reads; `tokenizer_folder` is the copy of its tokenizer in the stage's workdir."""

    checkpoint: Checkpoint
    recipe: Stage
    settings: ModelSettings
    tokenizer: Tokenizer
    tokenizer_folder: Path

    def language_model(self, abstract: Any) -> Any:
        """The language model's parameters; `abstract` gives shapes, dtypes and shardings."""
        return language_model_params(self.checkpoint, self.recipe, abstract)

    def reward_model(self, abstract: Any) -> Any:
        """A reward model's trunk and scalar head."""
        return self.parameters(abstract)

    def parameters(self, abstract: Any) -> Any:
        """All parameters, heads included; `abstract` gives shapes, dtypes and shardings."""
        return _restored(self.checkpoint, {"params": abstract})["params"]


def language_model_params(checkpoint: Checkpoint, recipe: Stage, abstract: Any) -> Any:
    """The language model in a checkpoint: a reward model's trunk, a policy, or the average of one where it is kept."""
    return parameters_at(checkpoint, recipe.language_model, abstract)


def parameters_at(checkpoint: Checkpoint, place: tuple[str, ...], abstract: Any) -> Any:
    """The part of a checkpoint below these keys; `abstract` gives shapes, dtypes and shardings."""
    tree = abstract
    for key in reversed(place):
        tree = {key: tree}
    restored = _restored(checkpoint, tree)
    for key in place:
        restored = restored[key]
    return restored


def _restored(checkpoint: Checkpoint, tree: Any) -> Any:
    try:
        return checkpoint.restore(tree)
    except DamagedCheckpointError as error:
        raise UserError(f"{error}; name an older step's folder") from error


def found_checkpoint(path: Path) -> Checkpoint:
    """The newest checkpoint of a workdir, a stage or a step; of a pipeline's workdir, that of its last policy.

    Raises UserError where there is none.
    """
    for name in reversed(stage_names(path) if is_pipeline(path) else []):
        if checkpoints_of(path / name).is_dir():
            newest = find_checkpoint(path / name)
            if not recipe_of(newest).scores:
                return newest
    return find_checkpoint(path)


def recipe_of(checkpoint: Checkpoint) -> Stage:
    """The recipe of the stage that wrote a checkpoint. Raises UserError where it cannot be read."""
    recipe: Stage = from_json(checkpoint.extras()["recipe"], f"{checkpoint.path}: recipe")
    return recipe


def place_of(source: str, workdir: Path) -> Path:
    """Where a stage's source is: the folder of that name beside the stage's own, or else a path."""
    beside = workdir.parent / source
    return beside if "/" not in source and beside.is_dir() else located(source)


def place_of_file(path: str, workdir: Path) -> Path:
    """Where a stage's file is: in the folder of another stage beside its own, or else a path."""
    beside = workdir.parent / path
    return beside if not Path(path).is_absolute() and beside.is_file() else Path(path)


def source_beside(source: DialogueSourceSettings, workdir: Path) -> DialogueSourceSettings:
    """The source whose path may begin with the name of another stage, whose folder is beside this one's."""
    path = str(place_of_file(source.path, workdir)) if source.path else ""
    return dataclasses.replace(source, path=path)


def named_checkpoint(path: str, workdir: Path, field: str) -> Checkpoint:
    """The newest checkpoint of what a field names. Raises UserError, with the field, where there is none."""
    with _naming(field, path, workdir):
        return found_checkpoint(place_of(path, workdir))


@contextmanager
def _naming(field: str, path: str, workdir: Path) -> Iterator[None]:
    """Gives the errors of reading a checkpoint the field that names it."""
    try:
        with clear_disk_errors(place_of(path, workdir)):
            yield
    except UserError as error:
        hint = "; a function in a file is named 'FILE.py:FUNCTION'" if path.endswith(".py") else ""
        raise UserError(f"{field} = {path!r}: {error}{hint}") from error


def open_initial(path: str, workdir: Path, field: str = "start") -> InitialCheckpoint:
    """Opens the newest checkpoint of `path`: a stage's name, a workdir or a checkpoint.

    Raises UserError where there is none, or where it has no tokenizer.
    """
    require(bool(path), field, path, "a stage's name or a checkpoint", "name what to start from")
    checkpoint = named_checkpoint(path, workdir, field)
    with _naming(field, path, workdir):
        extras = checkpoint.extras()
    recipe = recipe_of(checkpoint)
    require(bool(extras["tokenizer"]), field, path, "a checkpoint with a tokenizer", "import its tokenizer, too")
    folder = workdir / f"tokenizer-{field.replace('.', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.unpack_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    assert recipe.model is not None
    settings = dataclasses.replace(recipe.model, vocab_size=recipe.model.vocab_size or tokenizer.vocab_size)
    return InitialCheckpoint(checkpoint, recipe, settings, tokenizer, folder)


def open_reward_model(path: str, workdir: Path, policy: InitialCheckpoint, field: str) -> InitialCheckpoint:
    """Opens a reward model that reads what `policy` writes. Raises UserError where its tokenizer is another one."""
    start = open_initial(path, workdir, field)
    require(start.recipe.scores, field, path, "a reward model", "name the stage that trained one")
    reads = getattr(start.recipe, "reads", "last")
    require(reads == "last", field, path, f"one that reads the last token, not reads = {reads!r}", "train another")
    fix = "train one on the same start"
    require(_same_tokenizer(start, policy), field, path, "a reward model with the policy's tokenizer", fix)
    return start


def open_reference(path: str, workdir: Path, policy: InitialCheckpoint) -> InitialCheckpoint:
    """Opens the reference policy. Raises UserError where it reads or computes otherwise than the policy."""
    start = open_initial(path, workdir, "reference")
    fix = "name one that the policy is initialised from"
    require(_same_tokenizer(start, policy), "reference", path, "a model with the policy's tokenizer", fix)
    own = {name: getattr(policy.settings, name) for name in ("layers", "width", "context", "vocab_size")}
    other = ", ".join(f"model.{name} {value}" for name, value in own.items() if getattr(start.settings, name) != value)
    require(not other, "reference", path, f"a model of the policy's shape ({other})", fix)
    return start


def _same_tokenizer(one: InitialCheckpoint, other: InitialCheckpoint) -> bool:
    return tokenizer_fingerprint(one.tokenizer) == tokenizer_fingerprint(other.tokenizer)
