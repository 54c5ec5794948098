"""What a trained model says: `lmjax generate` and `lmjax chat`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lmjax
from lmjax.commands.command import CHECKPOINT, add_command, path_of
from lmjax.errors import UserError

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "beyond_context")
BEAMS = ("beams", "length_penalty", "n_best", "early_stopping")


def add(commands: Any) -> None:
    example = 'lmjax generate runs/quickstart --prompt "The array" --top 5'
    generate = add_command(commands, "generate", _generate, "continue prompts", example)
    _add_sampling(generate)
    generate.add_argument(
        "--prompt", action="append", help="may be repeated; default: standard input, without its last line end"
    )
    generate.add_argument("--top", type=int, default=0, help="show the K most likely tokens of each step")
    generate.add_argument("--json", action="store_true", help="one object per prompt")
    generate.add_argument("--beams", type=int, help="draw nothing: search for the likeliest text with so many beams")
    text = "rank by the sum of log-probabilities / length^this (default 1; 0: by the sum)"
    generate.add_argument("--length-penalty", type=float, help=text)
    generate.add_argument("--n-best", type=int, help="show so many texts of each prompt, with their scores")
    text = "of a prompt with a text for every beam: always, if no better one is likely (default), or if none can come"
    generate.add_argument("--early-stopping", choices=("always", "likely", "never"), help=text)

    _add_sampling(add_command(commands, "chat", _chat, "talk to a checkpoint", "lmjax chat runs/quickstart"))


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    command.add_argument("--max-tokens", type=int, help="the most tokens of a text (default 128)")
    command.add_argument("--temperature", type=float, help="0 is greedy; default 1")
    command.add_argument("--top-k", type=int, help="draw from the K likeliest tokens alone")
    command.add_argument("--top-p", type=float, help="draw from the likeliest tokens of so much probability")
    command.add_argument("--repetition-penalty", type=float, help="of tokens that were there; 1 (default) is none")
    command.add_argument("--stop", action="append", default=[], help="stop before this string; may be repeated")
    command.add_argument("--seed", type=int, help="the same seed gives the same text (default 0)")
    text = "where the context is full: stop (default), or read its last half again and continue"
    command.add_argument("--beyond-context", choices=("stop", "slide"), help=text)


def _generate(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.completions import print_beams, print_completions

    searching = options.beams is not None
    _refuse(options, SAMPLING if searching else BEAMS, searching)
    prompts = options.prompt or [sys.stdin.read().removesuffix("\n")]
    if searching:
        print_beams(options.checkpoint, prompts, as_json=options.json, **_given(options, ("max_tokens", *BEAMS)))
    else:
        print_completions(options.checkpoint, prompts, as_json=options.json, top=options.top, **_sampling(options))
    return 0


def _refuse(options: argparse.Namespace, names: tuple[str, ...], searching: bool) -> None:
    """Raises UserError for an option of the other way of generating."""
    others = list(_given(options, names))
    others += [name for name in ("stop", "top") if searching and getattr(options, name)]
    for name in others:
        flag = "--" + name.replace("_", "-")
        fix = "a beam search draws nothing and ends at end tokens: leave one out" if searching else "add --beams 4"
        raise UserError(f"{flag}: expected {'no' if searching else 'a'} beam search (--beams) beside it; {fix}")


def _chat(options: argparse.Namespace, _: list[str]) -> int:
    lmjax.load(options.checkpoint).chat(**_sampling(options))
    return 0


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return _given(options, ("max_tokens", *SAMPLING)) | {"stop": tuple(options.stop)}


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}
