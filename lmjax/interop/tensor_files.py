"""The tensors of a folder: `model.safetensors`, or several such files and the index that says which holds what.

In: a folder. Out: float32 arrays by name, read one at a time. Nothing in these files is ever executed, and no file
outside the folder is read, whatever the index names. `write_tensors` writes one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lmjax.errors import UserError, shortened
from lmjax.files import is_safe_name, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_READABLE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # each is exactly a float32


@dataclass(frozen=True)
class TensorFiles:
    """Tensors by name; `place` names where they were looked for, in errors."""

    place: Path
    files: Mapping[str, Path]  # the file of each tensor
    handles: Mapping[Path, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor as float32. Raises UserError for a dtype that float32 does not hold, and for NaN or infinity."""
        kind = self._slice(name).get_dtype()
        if kind not in _READABLE:
            raise UserError(
                f"{self.files[name]}: {name} has dtype {kind}: expected {', '.join(_READABLE)}; "
                "save the model in one of these, unquantized"
            )
        tensor = np.asarray(self.handles[self.files[name]].get_tensor(name)).astype(np.float32)
        check_finite(tensor, f"{self.files[name]}: {name}", "the training that wrote it diverged: take another copy")
        return tensor

    def _slice(self, name: str) -> Any:
        return self.handles[self.files[name]].get_slice(name)


class TakenTensors:
    """The tensors of a folder, each taken by its name with the shape that it must have, so that none is passed over."""

    def __init__(self, files: TensorFiles) -> None:
        self.files = files
        self._taken: set[str] = set()

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float32. Raises UserError where there is none, or one of another shape or dtype."""
        files = self.files
        if name not in files.files:
            raise UserError(
                f"{files.place}: no tensor {name}; expected one of shape {shape}; is config.json this model's?"
            )
        if files.shape(name) != shape:
            raise UserError(
                f"{files.files[name]}: {name} has shape {files.shape(name)}: expected {shape} by config.json; "
                "is it this model's?"
            )
        self._taken.add(name)
        return files.read(name)

    def has(self, name: str) -> bool:
        return name in self.files.files

    def first_axis(self, name: str) -> int:
        """The size of a tensor's first axis, which the tensor alone says; 0 where there is none or it has no axis."""
        shape = self.files.shape(name) if self.has(name) else ()
        return shape[0] if shape else 0

    def same(self, name: str, as_tensor: str, shape: tuple[int, ...], fix: str) -> None:
        """Takes a second copy of a tensor, where it is there. Raises UserError unless it is equal."""
        if self.has(name) and not np.array_equal(self(name, shape), self(as_tensor, shape)):
            raise UserError(f"{self.files.files[name]}: {name} differs from {as_tensor}, {fix}")

    def refuse_others(self, buffers: re.Pattern[str], prefix: str, model_type: str) -> None:
        """Raises UserError at the first tensor that was not taken; `buffers` hold no parameters."""
        for name in sorted(set(self.files.files) - self._taken):
            if not buffers.fullmatch(name.removeprefix(prefix)):
                raise UserError(
                    f"{self.files.files[name]}: {name} is no part of a {model_type!r} language model of this "
                    "config.json; is it this model's? If the tensor belongs to another task's head, save the model "
                    "without it"
                )


@contextmanager
def open_tensors(folder: Path) -> Iterator[TensorFiles]:
    """The tensors of `folder`. Raises UserError where files are missing, damaged or disagree with the index."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists() and index.exists():
        raise UserError(f"{folder}: expected {WEIGHTS} or {INDEX}, found both; remove the one that is out of date")
    with ExitStack() as stack:
        if single.exists():
            handles = {single: _open(stack, single)}
            yield TensorFiles(single, dict.fromkeys(handles[single].keys(), single), handles)
        elif index.exists():
            files = _read_index(index)
            handles = {path: _open(stack, path) for path in sorted(set(files.values()))}
            _compare(index, files, handles)
            yield TensorFiles(index, files, handles)
        else:
            raise UserError(_nothing_in(folder))


def check_finite(tensor: np.ndarray, what: str, fix: str) -> None:
    """Raises UserError that says how many entries of the tensor are NaN and infinite, where some are."""
    if np.isfinite(tensor).all():
        return
    nan, infinite = int(np.isnan(tensor).sum()), int(np.isinf(tensor).sum())
    raise UserError(
        f"{what}: {nan:,} of {tensor.size:,} entries are NaN and {infinite:,} infinite: expected none; {fix}"
    )


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors to one file. Raises UserError where it cannot be written, and for NaN or infinity."""
    for name, tensor in tensors.items():
        check_finite(tensor, f"the tensor {name}", "the training diverged: export an older checkpoint")
    plain = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})  # transformers reads no file without this word
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be written: {error}; free some space, or choose another place") from error


def _nothing_in(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    found = f"found {pickled[0]}, which only pickle reads" if pickled else "found neither"
    fix = "save_pretrained(folder) of today's transformers writes it" if pickled else "copy it there"
    return f"{folder}: expected {WEIGHTS} or {INDEX}, {found}; {fix}"


def _open(stack: ExitStack, path: Path) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: expected a whole safetensors file ({shortened(str(error))[1:-1]}); copy it again"
        ) from error


def _read_index(index: Path) -> dict[str, Path]:
    value = read_json(index, fix="copy it again")
    names = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: expected 'weight_map', an object from tensors to files; copy it again")
    for tensor, name in names.items():
        plain = is_safe_name(name) and name.endswith(".safetensors")
        if not plain:
            raise UserError(
                f"{index}: weight_map[{shortened(tensor)}] = {shortened(name)}: expected the plain name of a "
                ".safetensors file in the same folder; nothing outside it is read"
            )
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name}: no such file, though {index.name} names it; copy it there")
    return {tensor: index.parent / name for tensor, name in names.items()}


def _compare(index: Path, files: Mapping[str, Path], handles: Mapping[Path, Any]) -> None:
    """Raises UserError unless each file holds what the index says, and no more."""
    for path, handle in handles.items():
        said, held = {name for name, file in files.items() if file == path}, set(handle.keys())
        for name in sorted(said ^ held):
            says = f"{index.name} says that it is" if name in said else f"{index.name} does not name it"
            there = "not in this file" if name in said else "in this file"
            raise UserError(f"{path}: {shortened(name)[1:-1]} is {there}, but {says}; copy the folder again")
