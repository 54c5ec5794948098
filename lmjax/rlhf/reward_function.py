"""Rewards from a Python function (prompts, responses) -> scores, named in a recipe."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.errors import UserError

RewardFunction = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # (prompts, responses) -> float32 [B]


def is_function(source: str) -> bool:
    """Whether a reward's source names a function, as "package.module:function" or "file.py:function"."""
    place, _, name = source.rpartition(":")
    return bool(place) and name.isidentifier()


def load_function(source: str, field: str) -> RewardFunction:
    """The function that `source` names, which a recipe's `field` holds.

    Raises UserError where there is none, and when called where it does not give one finite number per response.
    """
    place, _, name = source.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the file does wrong is the user's to mend
        raise UserError(f"{field} = {source!r}: {place}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise UserError(f"{field} = {source!r}: {place} has no function {name!r}; its functions: {known}")

    def scores(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return _checked(function(prompts, responses), responses, f"{field} = {source!r}")

    return scores


def _checked(returned: Any, responses: Sequence[str], where: str) -> np.ndarray:
    scores = np.asarray(returned, np.float32)
    if scores.shape != (len(responses),):
        raise UserError(
            f"{where}: expected {len(responses)} scores, one per response, got an array of shape {scores.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(
            f"{where}: the score of a response is {scores[bad[0]]}: expected a finite number; the "
            f"response is {responses[bad[0]][:80]!r}"
        )
    return scores


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lmjax_reward_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
