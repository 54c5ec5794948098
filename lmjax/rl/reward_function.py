"""Rewards from Python functions, named in a recipe: (prompts, responses) -> scores.

A function receives the prompts as the policy read them and the responses as it wrote them, two lists of strings of
equal length, by position or, where its parameters have these names, as `prompts` and `responses` or `completions`. A
parameter of any other name receives that field of the prompts' records, a list with None where a record has no such
field; `records` receives the records themselves, and **kwargs all their fields. The function returns a number for each
response. The scores of several functions are added up; a function returns None for a response that it does not score.
"""

from __future__ import annotations

import importlib
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from lmjax.data.conversations import Prompt
from lmjax.errors import UserError, nearest, shortened, text_of
from lmjax.files import run_file
from lmjax.settings.renamed import module_hint

_RESPONSES = ("responses", "completions")
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SHOWN = 3  # records of a batch that an error names


class RewardFunction(Protocol):
    """Scores of responses, float32 [B], finite; `records` are those of the prompts, [B] or none.

    Raises UserError unless there is one finite number per response.
    """

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], records: Sequence[Prompt] = ()
    ) -> np.ndarray: ...


def load_function(source: str, field: str, timeout: float | None = None) -> RewardFunction:
    """The function that `source`, the value of a recipe's `field`, names; a call may take `timeout` seconds.

    Raises UserError if there is no such function, or if it cannot be called with prompts and responses.
    """
    return load_functions({field: source}, timeout)


def load_functions(sources: Mapping[str, str], timeout: float | None = None) -> RewardFunction:
    """The sum of the functions that the fields of a recipe name."""
    functions = [_Function(source, field, timeout) for field, source in sources.items()]

    def scores(prompts: Sequence[str], responses: Sequence[str], records: Sequence[Prompt] = ()) -> np.ndarray:
        scores_FB = np.stack([function.scores(prompts, responses, records) for function in functions])
        unscored_B = np.isnan(scores_FB).all(axis=0)
        if unscored_B.any():
            at = int(np.argmax(unscored_B))
            which = functions[0].where if len(functions) == 1 else "none of " + ", ".join(sources)
            verb = "returned None for" if len(functions) == 1 else "returned a number for"
            raise UserError(
                f"{which} {verb} {_response(at, responses, records)}: expected a finite number; at least one function "
                "of reward.source and reward.functions must score every response, and None is no score"
            )
        return _finite(_float32(np.nansum(scores_FB, axis=0)), functions[0].where, responses, records)

    return scores


class _Function:
    """One function of a recipe, and its field for messages."""

    def __init__(self, source: str, field: str, timeout: float | None) -> None:
        path, _, name = source.rpartition(":")
        self.where = f"{field} = {source!r}"
        self._timeout = timeout
        try:
            module = _from_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
        except (Exception, SystemExit) as error:  # any error of the user's file is a user error
            said = f"{text_of(error)}{module_hint(error)}"
            raise UserError(f"{self.where}: {path}: {type(error).__name__}: {said}") from error
        function = getattr(module, name, None)
        if not callable(function):
            known = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
            raise UserError(f"{self.where}: {path} has no function {name!r}; its functions: {known}")
        if inspect.iscoroutinefunction(function):
            raise UserError(f"{self.where}: expected a plain function, found an async one; write def, not async def")
        self._function = function
        self._file = getattr(module, "__file__", None)
        self._parameters = _parameters(function, self.where)

    def scores(self, prompts: Sequence[str], responses: Sequence[str], records: Sequence[Prompt]) -> np.ndarray:
        """A number for each response, float64 [B], NaN for None."""
        positional, named = self._arguments(prompts, responses, records)

        def call() -> np.ndarray:
            with jax.transfer_guard("allow"):  # the function may use jax arrays, also during a training step
                return _numbers(self._function(*positional, **named), self.where, responses, records)

        try:
            return _within(self._timeout, call)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # any error of the user's function is a user error
            reason = f"{type(error).__name__}: {text_of(error)}"
            raise UserError(f"{self.where}: {self._line(error)}: {reason}; {_batch(responses, records)}") from error

    def _line(self, error: BaseException) -> str:
        """The last line of the function's file in the error's traceback, or else the traceback's last line."""
        frames = traceback.extract_tb(error.__traceback__)
        in_file = [frame for frame in frames if frame.filename == self._file]
        frame = (in_file or list(frames))[-1]
        return f"{frame.filename}:{frame.lineno}"

    def _arguments(
        self, prompts: Sequence[str], responses: Sequence[str], records: Sequence[Prompt]
    ) -> tuple[list[Any], dict[str, Any]]:
        parameters = self._parameters
        texts: dict[str, Any] = {"prompts": prompts, **dict.fromkeys(_RESPONSES, responses)}
        fields = {name: None for record in records for name in record.fields}
        columns: dict[str, Any] = {name: [record.fields.get(name) for record in records] for name in fields}
        columns["records"] = [record.fields for record in records]
        by_name, others = _split(parameters)
        named = {name: texts[name] for name in by_name}
        for name in others:
            if name in columns:
                named[name] = columns[name]
            elif parameters[name].default is inspect.Parameter.empty:
                raise UserError(
                    f"{self.where}: the function takes {name!r}, a field that none of {_batch(responses, records)} "
                    f"has; {nearest(name, columns)}"
                )
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            rest = columns | ({"prompts": prompts} if by_name else {})
            named |= {name: rest[name] for name in rest if name not in (*parameters, *_RESPONSES, "records")}
        return ([] if by_name else [prompts, responses]), named


def _split(parameters: Mapping[str, inspect.Parameter]) -> tuple[list[str], list[str]]:
    """The names of the parameters for prompts and responses, [] where these are passed by position; and the others."""
    single = [name for name, parameter in parameters.items() if parameter.kind not in _MANY]
    known = [name for name in single if name in ("prompts", *_RESPONSES)]
    positional = any(parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY for name in single)
    if not positional and (len(known) > 1 or (known and single[0] in _RESPONSES)):
        return known, [name for name in single if name not in known]
    return [], single[2:]


def _parameters(function: Callable[..., Any], where: str) -> Mapping[str, inspect.Parameter]:
    """The function's parameters. Raises UserError if it cannot be called with prompts and responses."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions that are not written in Python have no signature
        return {}
    parameters = signature.parameters
    positional = [p for p in parameters.values() if p.kind not in (*_MANY, inspect.Parameter.KEYWORD_ONLY)]
    many = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    if _split(parameters)[0] or len(positional) >= 2 or many:
        return parameters
    raise UserError(f"{where}: expected a function of (prompts, responses), found {signature}; give it both parameters")


def _within(seconds: float | None, call: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `call`; with a timeout, run in a thread. Raises TimeoutError when it takes longer."""
    if seconds is None:
        return call()
    results: list[np.ndarray] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again by the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, name="reward function", daemon=True)  # a hanging one does not block the exit
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"it took longer than reward.timeout = {seconds:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


def _numbers(returned: Any, where: str, responses: Sequence[str], records: Sequence[Prompt]) -> np.ndarray:
    """A function's result as float64 [B], NaN for None. Raises UserError for anything but numbers and None."""
    is_array = hasattr(returned, "__array__")
    if isinstance(returned, str | bytes | Mapping) or not (is_array or hasattr(returned, "__iter__")):
        found = shortened(returned)
        raise UserError(f"{where}: expected one number per response, found {found}; return a list of floats")
    values: Any = np.asarray(returned) if is_array else list(returned)
    shape = values.shape if isinstance(values, np.ndarray) else (len(values),)
    if shape != (len(responses),):
        raise UserError(
            f"{where}: expected {len(responses)} scores, one per response, got an array of shape {shape}; "
            "return one number for each"
        )
    out = np.full(len(responses), np.nan)
    for at, value in enumerate(values):
        if value is None:
            continue
        number = _number(value)
        if number is None:
            raise UserError(
                f"{where}: expected one number per response, found {shortened(value, 80)} for "
                f"{_response(at, responses, records)}; return a list of floats"
            )
        out[at] = number
        _finite(_float32(out[at : at + 1]), where, responses[at : at + 1], records[at : at + 1])
    return out


def _number(value: Any) -> float | None:
    """A number or a boolean as a float; None for anything else."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    array = np.asarray(value) if hasattr(value, "__array__") else np.empty((), object)
    if array.shape == () and (array.dtype.kind in "biuf" or "float" in array.dtype.name):
        return float(array.astype(np.float64))
    return None


def _float32(numbers_B: np.ndarray) -> np.ndarray:
    """The numbers as float32; those that are too large become infinite."""
    with np.errstate(over="ignore"):
        return numbers_B.astype(np.float32)


def _finite(scores_B: np.ndarray, where: str, responses: Sequence[str], records: Sequence[Prompt]) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(scores_B))
    if len(bad):
        raise UserError(
            f"{where}: the score of a response is {scores_B[bad[0]]}: expected a finite number; give it one for "
            f"{_response(int(bad[0]), responses, records)}, too"
        )
    return scores_B


def _response(at: int, responses: Sequence[str], records: Sequence[Prompt]) -> str:
    place = f" to the prompt of {records[at].where}" if len(records) > at and records[at].where else ""
    return f"{responses[at][:80]!r}{place}"


def _batch(responses: Sequence[str], records: Sequence[Prompt]) -> str:
    """The prompts of a call, for messages."""
    places = list(dict.fromkeys(record.where for record in records if record.where))
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    named = f" to the prompts of {', '.join(places[:_SHOWN])}{more}" if places else ""
    return f"the {len(responses)} responses{named}"


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return run_file(path, f"lmjax_reward_{path.stem}")
