"""What commands share: how one is declared, and how its words become paths and recipes."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, require
from lmjax.files import user_path

# The help of arguments that several commands take.
RECIPE = "a path, or a name in experiments/, with :SIZE where it has sizes"
CHECKPOINT = "a workdir, a stage's checkpoints or one step's folder"
TABLE = "of runs: a sweep's table.jsonl, or CSV, JSON or Parquet"

Command = Callable[[argparse.Namespace, list[str]], int]  # (options, overrides of a recipe's fields) -> exit code


def add_command(commands: Any, name: str, call: Command, text: str, *examples: str) -> argparse.ArgumentParser:
    """A parser for the command `name`, whose help is `text` and then the examples; `call` does what it says."""
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="\n  ".join(("example:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    command.set_defaults(call=call, takes_overrides=False, parser=command, asks_help=False)
    command.add_argument("-h", "--help", action=_Help, help="show this help message, of a recipe with all its fields")
    return command


class _Help(argparse.Action):
    """Prints the help of a command, or leaves that to `print_help` where a recipe stands before."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=False, **options)

    def __call__(self, parser: Any, namespace: argparse.Namespace, *_: object) -> None:
        if parser.get_default("takes_overrides") and getattr(namespace, "recipe", None) is not None:
            namespace.asks_help = True
            return
        parser.print_help()
        parser.exit()


def print_help(options: argparse.Namespace, overrides: list[str]) -> int:
    """The help of a command and of the recipe that it names: its arguments and its fields, with their values.

    The values are those that `overrides` set; where these are mistaken, which is said, and of a recipe whose arguments
    are missing, they are those of the recipe, or of its kind of stage.
    """
    from lmjax.errors import ArgumentError
    from lmjax.runs.field_list import argument_lines, stage_lines
    from lmjax.settings.recipe_functions import recipe_function

    function, said = recipe_function(options.recipe), ""
    try:
        recipe = overridden_recipe(options, overrides)
    except UserError as error:
        said = str(error) if overrides else ""
        try:
            recipe = function.trained({})
        except ArgumentError:
            if function.returns is None:
                raise
            recipe = function.returns()
    options.parser.print_help()
    if function.arguments:
        print(f"\narguments of {function.spec}:", *argument_lines(function), sep="\n")
    print(f"\nfields of {function.spec}:", *stage_lines(recipe), sep="\n")
    if said:
        print(f"\nnot shown, for it is mistaken: {said}")
    return 0


def path_of(text: str) -> Path:
    """A path as an argument gives it: `~` is a home folder."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_png(path: Path | None) -> None:
    """Raises UserError unless a plot, if one is wanted, can be written to `path`."""
    if path is not None and path.suffix.lower() != ".png":
        raise UserError(f"--plot {path}: expected a file that ends in .png")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--plot {path}: expected a file in a folder that exists; make {path.parent}")
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        found = "a folder" if path.is_dir() else f"that {path.parent} cannot be written"
        raise UserError(f"--plot {path}: found {found}, expected a file; name one in another folder")


def share(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`, as an argument gives it."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, such as 1/4")
    return int(found[1]), int(found[2])


def overridden_recipe(options: argparse.Namespace, overrides: list[str], *, sweeps: bool = False) -> Any:
    """The recipe that `options` name, a stage or a pipeline, with the arguments and the fields that `overrides` set.

    With `sweeps` it may be a sweep, of which no field is set.
    """
    from lmjax.runs.overrides import overridden
    from lmjax.settings import Sweep
    from lmjax.settings.recipe_functions import recipe_function

    function = recipe_function(options.recipe)
    arguments, fields = function.from_words(overrides)
    recipe = function.recipe(arguments) if sweeps else function.trained(arguments)
    if isinstance(recipe, Sweep):
        require(not fields, "fields of a sweep", fields, "none", "set them in its file")
        return recipe
    return overridden(recipe, fields, options.recipe, options.parser.prog)


def pretraining(options: argparse.Namespace, overrides: list[str]) -> Any:
    """The recipe, or the first stage of its pipeline, which must be a pretraining."""
    return first_pretraining(overridden_recipe(options, overrides), options.recipe)


def first_pretraining(recipe: Any, spec: str) -> Any:
    """The first stage of a recipe. Raises UserError, naming `spec`, unless it is a pretraining."""
    from lmjax.stages.registry import kind_of

    first = recipe.stages[0]
    if not kind_of(first).prepares_text:
        what = f"{spec}: expected a recipe that pretrains, or a pipeline that begins so"
        raise UserError(f"{what}; it is of the stage {type(first).__name__}")
    return first
