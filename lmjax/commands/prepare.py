"""What is made once for many runs: `lmjax tokenizer train` and `lmjax data prepare`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from lmjax.commands.command import add_command, path_of, pretraining, share


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

    recipe, display = pretraining(options, overrides), ProgressDisplay()
    one = options.shard is None or options.merge is None
    require(one, "--shard", options.shard, "it or --merge, not both", "prepare every share, then merge them")
    if options.shard is not None:
        print(prepare_share(recipe, options.out, options.shard, display, workers=options.workers))
        return 0
    if options.merge is not None:
        training = merge_shares(recipe, options.out, options.merge, display, workers=options.workers)
    else:
        training = prepare_data(recipe, options.out, display, workers=options.workers)
    print("to train from them:\n ", shlex.join(["lmjax", "run", options.recipe, *overrides, *training]))
    return 0
