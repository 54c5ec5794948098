"""What commands share: how one is declared, and how its words become paths and recipes."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.files import user_path

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
    )
    command.set_defaults(call=call, takes_overrides=False, parser=command)
    return command


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


def overridden_recipe(options: argparse.Namespace, overrides: list[str]) -> Any:
    """The recipe that `options` name, a stage or a pipeline, with the arguments and the fields that `overrides` set."""
    from lmjax.runs.overrides import overridden
    from lmjax.settings.recipe_files import load_recipe
    from lmjax.settings.recipe_functions import recipe_function

    arguments, fields = recipe_function(options.recipe).from_words(overrides)
    return overridden(load_recipe(options.recipe, **arguments), fields, options.recipe, options.parser.prog)


def pretraining(options: argparse.Namespace, overrides: list[str]) -> Any:
    """The recipe, or the first stage of its pipeline, which must be a pretraining."""
    from lmjax.stages.registry import kind_of

    first = overridden_recipe(options, overrides).stages[0]
    if not kind_of(first).prepares_text:
        what = f"{options.recipe}: expected a recipe that pretrains, or a pipeline that begins so"
        raise UserError(f"{what}; it is of the stage {type(first).__name__}")
    return first
