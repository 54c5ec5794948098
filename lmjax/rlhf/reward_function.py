"""Rewards from a Python function (prompts, responses) -> scores, named in a recipe."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.errors import UserError

RewardFunction = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # (prompts, responses) -> float32 [B]


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

    where = f"{field} = {source!r}"
    _check_arguments(function, where)

    def scores(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        try:
            returned = function(prompts, responses)
        except Exception as error:  # whatever the function does wrong is the user's to mend
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(f"{where}: {line.filename}:{line.lineno}: {type(error).__name__}: {error}") from error
        return _checked(returned, responses, where)

    return scores


def _check_arguments(function: Callable[..., Any], where: str) -> None:
    """Raises UserError where it cannot be called with prompts and responses."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions that are not written in Python have none
        return
    try:
        signature.bind((), ())
    except TypeError as error:
        raise UserError(f"{where}: expected a function of (prompts, responses), found {signature}: {error}") from error


def _checked(returned: Any, responses: Sequence[str], where: str) -> np.ndarray:
    try:
        scores = np.asarray(returned, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: expected one number per response: {error}; return a list of floats") from error
    if scores.shape != (len(responses),):
        raise UserError(
            f"{where}: expected {len(responses)} scores, one per response, got an array of shape {scores.shape}; "
            "return one number for each"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(
            f"{where}: the score of a response is {scores[bad[0]]}: expected a finite number; give it "
            f"one for {responses[bad[0]][:80]!r}, too"
        )
    return scores


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lmjax_reward_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
