"""Recipes: what a run is, as one frozen dataclass, and its exact JSON form.

A recipe file is plain Python with a function `recipe()` or, where it offers sizes, `recipe(size)`. What comes out
of this module is a checked recipe; nothing else configures a run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import traceback
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmjax.errors import UserError, nearest, require
from lmjax.settings import (
    CheckpointSettings,
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    TokenizerSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class Pretrain:
    """Language-model pretraining from scratch on raw text."""

    name: str = "pretrain"
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        plain = (
            bool(self.name)
            and self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
            and self.name[0] != "."
        )
        require(plain, "name", self.name, "letters, digits, '-', '_' and '.'", "it names a folder")
        length, context = self.data.sequence_length, self.model.context
        fits = length <= context or self.model.positions.kind != "learned"
        require(fits, "data.sequence_length", length, f"at most model.context {context}", "shorten it or raise context")
        parts = self.train.microbatches
        for rows in {self.data.batch_size, self.data.ramp_from or self.data.batch_size}:
            divides = rows % parts == 0
            require(divides, "train.microbatches", parts, f"a divisor of the {rows} rows of a batch", "change either")


Recipe = Pretrain
STAGES: dict[str, type[Pretrain]] = {"pretrain": Pretrain}


def to_json(recipe: Recipe) -> str:
    """The recipe with every field written out; `from_json` gives back an equal recipe."""
    stage = next(name for name, cls in STAGES.items() if cls is type(recipe))
    return json.dumps({"stage": stage, **dataclasses.asdict(recipe)}, indent=2) + "\n"


def from_json(text: str, where: str = "recipe.json") -> Recipe:
    """The recipe that `to_json` wrote. Raises UserError naming the first field that does not fit."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: not JSON: {error.msg}; restore the file or start anew") from error
    if not isinstance(value, dict) or value.get("stage") not in STAGES:
        raise UserError(f"{where}: expected an object whose 'stage' is one of {', '.join(STAGES)}")
    return _decode(STAGES[value.pop("stage")], value, where)


def difference(old: Recipe, new: Recipe) -> list[str]:
    """One line per field that differs: `train.steps: 100 -> 200`."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    names = [*before, *(name for name in after if name not in before)]
    absent = "(absent)"
    pairs = ((name, before.get(name, absent), after.get(name, absent)) for name in names)
    return [f"{name}: {a!r} -> {b!r}" for name, a, b in pairs if a != b]


def load_recipe(spec: str) -> Recipe:
    """Reads `spec`: a path, or the bare name of a file in experiments/, with `:SIZE` where the recipe offers sizes."""
    name, _, size = spec.partition(":")
    path = _find(name)
    make = _recipe_function(path)
    offered = typing.get_type_hints(make).get("size")
    sizes = typing.get_args(offered)
    if size and not sizes:
        raise UserError(f"{spec}: {path} offers no sizes; leave out ':{size}'")
    if size and size not in sizes:
        raise UserError(f"{spec}: {path} has no size {size!r}; {nearest(size, sizes)} (sizes: {', '.join(sizes)})")
    recipe = _run_user_code(path, lambda: make(size) if size else make())
    if type(recipe) not in STAGES.values():
        raise UserError(f"{path}: recipe() returned {type(recipe).__name__}; return one of lmjax.recipe's stages")
    return recipe


def _find(name: str) -> Path:
    folders = [Path("experiments"), Path(__file__).parents[1] / "experiments"]
    candidates = [Path(name)] if name.endswith(".py") else [folder / f"{name}.py" for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    names = sorted({file.stem for folder in folders for file in folder.glob("*.py")})
    raise UserError(f"no recipe {name!r}: looked for {', '.join(map(str, candidates))}; {nearest(name, names)}")


def _recipe_function(path: Path) -> typing.Callable[..., Recipe]:
    spec = importlib.util.spec_from_file_location(f"lmjax_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _run_user_code(path, lambda: loader.exec_module(module))
    make = getattr(module, "recipe", None)
    if not inspect.isfunction(make):
        raise UserError(f"{path}: expected a function recipe() that returns a recipe; add one")
    return make


def _run_user_code(path: Path, call: typing.Callable[[], Any]) -> Any:
    try:
        return call()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, NameError, AttributeError, SyntaxError, ImportError, ValueError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}:{line}" if line else str(path)
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items: typing.Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where, " or ".join(map(repr, arguments)))
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        _expect(len(kinds) == len(value), value, where, f"{len(kinds)} entries")
        return tuple(_decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), value, where, "a number")
        return float(value)
    return _expect(type(value) is kind, value, where, kind.__name__)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    hints = typing.get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]
    for name in value:
        if name not in fields:
            raise UserError(f"{where}: unknown field {name!r}; {nearest(name, fields)}")
    try:
        return kind(**{name: _decode(hints[name], item, f"{where}: {name}") for name, item in value.items()})
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error


def _expect(fits: bool, value: Any, where: str, expected: str) -> Any:
    if not fits:
        raise UserError(f"{where}: {value!r}: expected {expected}")
    return value
