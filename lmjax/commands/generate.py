"""What a trained model says: `lmjax generate` and `lmjax chat`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lmjax
from lmjax.commands.command import add_command, path_of


def add(commands: Any) -> None:
    example = 'lmjax generate runs/quickstart --prompt "The array" --top 5'
    generate = add_command(commands, "generate", _generate, "continue prompts", example)
    _add_sampling(generate)
    generate.add_argument(
        "--prompt", action="append", help="may be repeated; default: standard input, without its last line end"
    )
    generate.add_argument("--top", type=int, default=0, help="show the K most likely tokens of each step")
    generate.add_argument("--json", action="store_true", help="one object per prompt")

    _add_sampling(add_command(commands, "chat", _chat, "talk to a checkpoint", "lmjax chat runs/quickstart"))


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=path_of, help="a workdir, a stage's checkpoints or one step's folder")
    command.add_argument("--max-tokens", type=int)
    command.add_argument("--temperature", type=float, help="0 is greedy")
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--repetition-penalty", type=float)
    command.add_argument("--stop", action="append", default=[], help="stop before this string; may be repeated")
    command.add_argument("--seed", type=int)
    text = "where the context is full: stop (default), or read its last half again and continue"
    command.add_argument("--beyond-context", choices=("stop", "slide"), help=text)


def _generate(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.completions import print_completions

    prompts = options.prompt or [sys.stdin.read().removesuffix("\n")]
    print_completions(options.checkpoint, prompts, as_json=options.json, top=options.top, **_sampling(options))
    return 0


def _chat(options: argparse.Namespace, _: list[str]) -> int:
    lmjax.load(options.checkpoint).chat(**_sampling(options))
    return 0


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "beyond_context")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None} | {"stop": tuple(options.stop)}
