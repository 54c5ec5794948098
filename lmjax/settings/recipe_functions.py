"""The function of a recipe file: where the file is, what sizes and arguments it offers, and the recipe that it makes.

A recipe file is plain Python with a function `recipe()`. Where it offers sizes, its parameter `size` is a Literal of
them, and `NAME:SIZE` chooses one. Further parameters are arguments, which the command line offers as options:
`recipe(size, data: tuple[str, ...])` is told `--data FILE FILE`. What goes wrong is a UserError that names the file and
the line, the field or the argument.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmjax.settings
from lmjax.errors import ArgumentError, FieldError, UserError, nearest, shortened, text_of
from lmjax.fields import Settings, checked, described, field_types, fits, require_local, unchecked
from lmjax.files import decode_text, is_safe_name, read_bytes, run_file
from lmjax.settings import Pipeline, Sweep
from lmjax.settings.field_texts import field_texts
from lmjax.settings.renamed import module_hint, renamed_fields
from lmjax.settings.stage import KINDS
from lmjax.settings.words import Option, is_option, options_of, value_of

SIZE = "size"  # the parameter that `NAME:SIZE` gives


@dataclass(frozen=True)
class RecipeFunction:
    """The function of a recipe file, and the size that is asked for."""

    spec: str  # as it was asked for
    path: Path
    make: Callable[..., Any]
    size: str  # "" for the function's own
    sizes: tuple[str, ...]
    arguments: dict[str, Any]  # the declared types of its other parameters, by their names

    @property
    def returns(self) -> Any:
        """The class that it says it returns, if it is a kind of stage."""
        kind = typing.get_type_hints(self.make).get("return")
        return kind if kind in KINDS.values() else None

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of those of its arguments that need not be given."""
        parameters = inspect.signature(self.make).parameters
        given = {name: parameters[name].default for name in self.arguments}
        return {name: value for name, value in given.items() if value is not inspect.Parameter.empty}

    def recipe(self, arguments: Mapping[str, Any]) -> Any:
        """The stage, pipeline or sweep that it makes. Raises UserError, ArgumentError where an argument is wrong."""
        self._check(arguments)
        given = {**arguments, **({SIZE: self.size} if self.size else {})}
        made = _run_user_code(self.path, lambda: _made(lambda: self.make(**given)))
        if type(made) not in (Pipeline, Sweep, *KINDS.values()):
            returned = f"recipe() returned {type(made).__name__}"
            raise UserError(f"{self.path}: {returned}; return one of lmjax.settings's stages")
        return made

    def trained(self, arguments: Mapping[str, Any]) -> Any:
        """As `recipe`, of a stage or a pipeline. Raises UserError for a sweep."""
        made = self.recipe(arguments)
        if isinstance(made, Sweep):
            what = f"a sweep of {len(made.runs)} runs; expected a stage or a pipeline; use lmjax sweep"
            raise UserError(f"{self.path}: {what}")
        return made

    def from_words(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The arguments that the words give, and the words that set fields. Raises UserError."""
        if not self.arguments:
            return {}, list(words)
        arguments, others = {}, []
        for option in options_of(words):
            name = ".".join(option.path)
            if name in self.arguments:
                arguments[name] = value_of(self.arguments[name], option)
            elif len(option.path) == 1 and name.removeprefix("no_") not in _single_fields():
                options = [option_of(one) for one in self.arguments]
                raise ArgumentError(
                    f"{shortened(option.written)[1:-1]}: no such option; {nearest(option.written, options)}"
                )
            else:
                others += _as_words(option)
        return arguments, others

    def _check(self, arguments: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name not in self.arguments:
                known = nearest(name, self.arguments) if self.arguments else "it has none"
                raise ArgumentError(f"{self.spec}: no argument {name!r}; {known}")
            if not fits(self.arguments[name], value):
                expected = described(self.arguments[name])
                raise ArgumentError(f"{self.spec}: {name} = {shortened(value)}: expected {expected}")
        for name in self.arguments:
            if name not in arguments and name not in self.defaults:
                text = field_texts(self.make).get(name) or f"Expected {described(self.arguments[name])}."
                raise ArgumentError(f"{self.spec}: {option_of(name)} is missing. {text}")


@functools.cache
def _single_fields() -> set[str]:
    """The names that an option without a dot may have, beside those of arguments: of any stage's fields."""
    kinds: list[Any] = list(KINDS.values())
    return {name for kind in kinds for name in field_types(kind)} | {"h", "help"}


def option_of(name: str) -> str:
    """An argument's name as an option."""
    return f"--{name.replace('_', '-')}"


def _as_words(option: Option) -> list[str]:
    first, *rest = option.words or ("",)
    return [f"{option.written}={first}", *rest] if is_option(first) else [option.written, *option.words]


def recipe_function(spec: str) -> RecipeFunction:
    """The function of `spec`: a path or the bare name of a file in experiments/, with `:SIZE` where it has sizes.

    Raises UserError where there is no such file, function or size.
    """
    require_local("RECIPE", spec)
    file, _, size = spec.partition(":")
    path = _find(file)
    make = _function_in(path)
    hints = _run_user_code(path, lambda: typing.get_type_hints(make))
    sizes = tuple(map(str, typing.get_args(hints.get(SIZE))))
    name = shortened(spec)[1:-1]
    if size and not sizes:
        raise UserError(f"{name}: {path} offers no sizes; leave out {shortened(':' + size)}")
    if size and size not in sizes:
        known = f"{nearest(size, sizes)} (sizes: {', '.join(sizes)})"
        raise UserError(f"{name}: {path} has no size {shortened(size)}; {known}")
    arguments = {one: kind for one, kind in hints.items() if one not in (SIZE, "return")}
    return RecipeFunction(name, path, make, size, sizes, arguments)


def recipe_names() -> list[str]:
    """The bare names that `load_recipe` knows: of the files in experiments/, here and where lmjax is installed."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.py")})


def _folders() -> list[Path]:
    """Where bare names are looked for: here, and then in the checkout or, of an installed lmjax, in the package."""
    package = Path(__file__).parents[1]
    installed = package / "experiments"
    return [Path("experiments"), installed if installed.is_dir() else package.parent / "experiments"]


def _find(name: str) -> Path:
    candidates = [Path(name)] if name.endswith(".py") else [folder / f"{name}.py" for folder in _folders()]
    for path in candidates if is_safe_name(Path(name).name) else ():
        if path.is_file():
            return path
        if path.is_dir():
            raise UserError(f"{path}: it is a folder; expected a recipe file; name a file in it")
    looked = ", ".join(shortened(str(path))[1:-1] for path in candidates)
    raise UserError(f"no recipe {shortened(name)}: looked for {looked}; {nearest(name[:200], recipe_names())}")


def _function_in(path: Path) -> Callable[..., Any]:
    source = read_bytes(path)
    if not any(b"coding" in line for line in source.splitlines()[:2]):  # PEP 263: Python knows how to read it
        decode_text(source, path)
    module = _run_user_code(path, lambda: run_file(path, f"lmjax_recipe_{path.stem}"))
    make = getattr(module, "recipe", None)
    if not inspect.isfunction(make):
        raise UserError(f"{path}: expected a function recipe() that returns a recipe; add one")
    return make


def _made(make: Callable[[], Any]) -> Any:
    """The recipe that `make` returns. For an error of a field, `make` runs again, unchecked, to find its full path."""
    try:
        return make()
    except FieldError as error:
        found = None
        with contextlib.suppress(Exception):  # of the user's code, which may count on checked values
            found = _first_error(make)
        same = found is not None and found.rest == error.rest and found.field.endswith(error.field)
        raise (found if same and found else error).with_traceback(error.__traceback__) from None


def _first_error(make: Callable[[], Any]) -> FieldError | None:
    with unchecked():
        recipe = make()
    try:
        for stage in recipe.stages:
            checked(stage, "" if stage is recipe else stage.name)
    except FieldError as error:
        return error
    return None


def _run_user_code(path: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (KeyboardInterrupt, ArgumentError):
        raise
    except BaseException as error:  # whatever a recipe does wrong is the user's to fix
        here = (str(path), str(path.absolute()))  # as an import names it
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in here]
        own = isinstance(error, SyntaxError) and error.filename in here
        line = error.lineno if own and isinstance(error, SyntaxError) else frames[-1] if frames else None
        place = f"{path}:{line}" if line else str(path)
        said = text_of(error)
        what = said if len(said) < 1000 else shortened(said, 600)[1:-1]
        message = what if isinstance(error, UserError) else f"{type(error).__name__}: {what}{_hint(error)}"
        raise UserError(f"{place}: {message}") from error


def _hint(error: BaseException) -> str:
    """For a keyword, a field or a module that is not there: its new name, or the nearest field."""
    if isinstance(error, SystemExit):
        return "; a recipe returns, and leaves the process to lmjax"
    if isinstance(error, AttributeError) and isinstance(error.obj, Settings):
        return f"; {known_field(type(error.obj), error.name or '')}"
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text_of(error))
    parts: dict[str, Any] = {
        **vars(lmjax.settings),
        **{stage.__name__: stage for stage in KINDS.values()},
    }
    part = found and parts.get(found[1])
    return f"; {known_field(part, found[2])}" if found and part else module_hint(error)


def known_field(part: type, name: str) -> str:
    """For a field that a settings class does not have: its new name, or the nearest that the class has."""
    new = renamed_fields(part).get(name)
    return f"{name!r} is now called {new!r}" if new else nearest(name, field_types(part))
