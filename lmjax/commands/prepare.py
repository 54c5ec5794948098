"""What is made once for many runs: `lmjax tokenizer train` and `lmjax data prepare`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from lmjax.commands.command import add_command, path_of, pretraining


def add(commands: Any) -> None:
    for group, action, call, text, out in (
        ("tokenizer", "train", _tokenizer_train, "train a recipe's tokenizer", "tokenizer"),
        ("data", "prepare", _data_prepare, "write a recipe's token shards", "shards"),
    ):
        actions = commands.add_parser(group, help=text).add_subparsers(dest="action", required=True, metavar="ACTION")
        command = add_command(actions, action, call, text, f"lmjax {group} {action} quickstart --out {out}/")
        command.set_defaults(takes_overrides=True)
        command.add_argument("recipe", metavar="RECIPE")
        command.add_argument("--out", type=path_of, required=True)
        if group == "data":
            command.add_argument("--workers", type=int, help="processes (default: one per core)")


def _tokenizer_train(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.stages.prepare_data import train_tokenizer
    from lmjax.training.progress import ProgressDisplay

    recipe = pretraining(options, overrides)
    tokenizer = train_tokenizer(recipe, options.out, ProgressDisplay())
    print(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} entries written to {options.out}")
    return 0


def _data_prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.stages.prepare_data import prepare_data
    from lmjax.training.progress import ProgressDisplay

    recipe = pretraining(options, overrides)
    training = prepare_data(recipe, options.out, ProgressDisplay(), workers=options.workers)
    print("to train from them:\n ", shlex.join(["lmjax", "run", options.recipe, *overrides, *training]))
    return 0
