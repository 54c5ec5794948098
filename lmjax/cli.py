"""The `lmjax` command: parse, call, print. It has no logic of its own; everything it does can be called from Python."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lmjax.commands import (
    convert,
    evaluate,
    fit,
    forecast,
    generate,
    harness,
    plan,
    predict,
    prepare,
    score,
    sweep,
    train,
)
from lmjax.commands.command import print_help
from lmjax.errors import PeerLostError, UserError, means_full_disk, nearest, readable
from lmjax.fields import require_local
from lmjax.files import open_streams
from lmjax.version import __version__

COMMANDS = (train, sweep, fit, forecast, plan, generate, evaluate, score, predict, harness, prepare, convert)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 a user's mistake, 128 + N stopped by signal N.

    Where another process of the run has died it ends this one with 1, at once: JAX would wait for the dead one.
    """
    open_streams()
    options, rest = parser().parse_known_args(arguments)
    try:
        if rest and not options.takes_overrides:
            raise UserError(f"unknown arguments: {shlex.join(rest)}; {_nearest_option(options.parser, rest[0])}")
        _refuse_urls(options)
        if getattr(options, "asks_help", False):
            return print_help(options, rest)
        code = options.call(options, rest)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        _leave(options, 2, str(error))
        return 2
    except SystemExit as leaving:
        if leaving.code == 2:
            _leave(options, 2, "its command cannot be read; its own log says why")
        raise
    except PeerLostError as error:
        print(f"lmjax: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except KeyboardInterrupt:
        print("lmjax: interrupted", file=sys.stderr)
        _leave(options, 128 + signal.SIGINT, "interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and means_full_disk(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("lmjax: the output cannot be written: the disk is full; free some space", file=sys.stderr)
            _leave(options, 2, "the disk is full")
            return 2
        traceback.print_exc()
        _leave(options, 1, "ended early; its own log says why")
        return 1


def _leave(options: argparse.Namespace, code: int, message: str) -> None:
    """Where a run has several processes, tells the others and ends this one at once: JAX would wait for them."""
    if options.command == "run":
        from lmjax.parallel import processes

        sys.stderr.flush()
        if processes.tell(message, code):
            sys.stdout.flush()
            os._exit(code)


def _refuse_urls(options: argparse.Namespace) -> None:
    """Before anything is read, written or trained."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            option = f"--{name.replace('_', '-')}"
            bucket = name == "checkpoint" or (options.command, name) == ("run", "workdir")
            require_local(option if option in options.parser.format_help() else name.upper(), value, bucket=bucket)


def _nearest_option(parser: argparse.ArgumentParser, wrong: str) -> str:
    return nearest(wrong.partition("=")[0], sorted(set(re.findall(r"--[a-z-]+", parser.format_help()))))


class _Parser(argparse.ArgumentParser):
    """Repeats no word of thousands of characters in an error."""

    def error(self, message: str) -> NoReturn:
        super().error(readable(message))


def parser() -> argparse.ArgumentParser:
    """Reads every command; what a command does not know is left for the recipe's fields."""
    whole = _Parser("lmjax", description="A JAX/Flax training stack for language models.")
    whole.add_argument("--version", action="version", version=f"lmjax {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return whole


if __name__ == "__main__":
    sys.exit(main())
