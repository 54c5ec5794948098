"""What is made once for many runs: `lmjax tokenizer train` and `lmjax data prepare`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from lmjax.commands.command import (
    RECIPE,
    add_command,
    first_pretraining,
    overridden_recipe,
    path_of,
    pretraining,
    share,
)


def add(commands: Any) -> None:
    for group, action, call, text, out in (
        ("tokenizer", "train", _tokenizer_train, "train a recipe's tokenizer", "tokenizer"),
        (
            "data",
            "prepare",
            _data_prepare,
            "write a recipe's token shards, and a recipe beside them",
            "shards",
        ),
    ):
        actions = commands.add_parser(group, help=text).add_subparsers(dest="action", required=True, metavar="ACTION")
        command = add_command(actions, action, call, text, f"lmjax {group} {action} quickstart --out {out}/")
        command.set_defaults(takes_overrides=True)
        command.add_argument("recipe", metavar="RECIPE", help=RECIPE)
        command.add_argument("--out", type=path_of, required=True, help="the folder to write")
        if group == "data":
            command.add_argument("--workers", type=int, help="processes (default: one per core)")
            text = "write the I-th of N parts of every source, on one of N machines, to OUT/shares/"
            command.add_argument("--shard", type=share, metavar="I/N", help=text)
            text = "make the shards of all parts, in OUT or in the DIRs that were the OUT of some"
            command.add_argument("--merge", nargs="*", type=path_of, metavar="DIR", help=text)


def _tokenizer_train(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.stages.prepare_data import train_tokenizer
    from lmjax.training.progress import ProgressDisplay

    recipe = pretraining(options, overrides)
    tokenizer = train_tokenizer(recipe, options.out, ProgressDisplay())
    print(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} entries written to {options.out}")
    return 0


def _data_prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.errors import require
    from lmjax.stages.prepare_data import prepare_data
    from lmjax.stages.prepare_shares import merge_shares, prepare_share
    from lmjax.training.progress import ProgressDisplay

    recipe, display = overridden_recipe(options, overrides), ProgressDisplay()
    first = first_pretraining(recipe, options.recipe)
    one = options.shard is None or options.merge is None
    require(one, "--shard", options.shard, "it or --merge, not both", "prepare every share, then merge them")
    if options.shard is not None:
        print(prepare_share(first, options.out, options.shard, display, workers=options.workers))
        return 0
    if options.merge is not None:
        prepared = merge_shares(first, options.out, options.merge, display, workers=options.workers)
    else:
        prepared = prepare_data(first, options.out, display, workers=options.workers)
    written = _write_recipe(options.out, recipe, prepared, shlex.join(["lmjax", "run", options.recipe, *overrides]))
    print("to train from them:\n ", shlex.join(["lmjax", "run", str(written)]))
    return 0


def _write_recipe(folder: Path, recipe: Any, prepared: Any, command: str) -> Path:
    """Writes beside the shards the recipe that trains from them; of a pipeline, with all its stages."""
    from lmjax.errors import clear_disk_errors
    from lmjax.files import write_whole
    from lmjax.settings import Pipeline
    from lmjax.settings.recipe_source import source_of

    whole = dataclasses.replace(recipe, stages=(prepared, *recipe.stages[1:])) if type(recipe) is Pipeline else prepared
    about = f"As `{command}`, from the tokens and the tokenizer beside this file, which may be moved together."
    path = folder / "recipe.py"
    with clear_disk_errors(folder):
        write_whole(path, source_of(whole, about, here=folder))
    return path
