"""The `lmjax` command: parse, call, print. It has no logic of its own; everything it does can be called from Python."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lmjax
from lmjax.errors import PeerLostError, UserError, nearest, readable
from lmjax.fields import require_local
from lmjax.files import open_streams, user_path
from lmjax.version import __version__

Command = Callable[[argparse.Namespace, list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 a user's mistake, 128 + N stopped by signal N.

    Where another process of the run has died it ends this one with 1, at once: JAX would wait for the dead one.
    """
    open_streams()
    options, rest = _parser().parse_known_args(arguments)
    try:
        if rest and not options.takes_overrides:
            raise UserError(f"unknown arguments: {shlex.join(rest)}; {_nearest_option(options.parser, rest[0])}")
        _refuse_urls(options)
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
    except Exception:
        traceback.print_exc()
        _leave(options, 1, "ended early; its own log says why")
        return 1


def _path(text: str) -> Path:
    """A path as an argument gives it: `~` is a home folder."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    recipe = _overridden(options, ["--help"] if options.fields else overrides)
    chosen = {"only": options.only, "start_from": options.start_from, "executable": options.executable}
    chosen["cache"] = options.cache
    result = lmjax.run(recipe, workdir=options.workdir, force=options.force, **chosen)
    return result.exit_code


def _count(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.model.flops import count
    from lmjax.model.presets import PRESETS, preset
    from lmjax.settings.recipe_files import recipe_names
    from lmjax.tasks.resolved import known_model

    name = options.recipe
    if name in PRESETS:
        if overrides:
            raise UserError(f"{shlex.join(overrides)}: a preset is as published; count a recipe to change its fields")
        settings = preset(name)
    elif name.partition(":")[0].endswith(".py") or name.partition(":")[0] in recipe_names():
        settings = known_model(_pretraining(options, overrides))
    else:
        raise UserError(f"no preset or recipe {name!r}; {nearest(name, [*PRESETS, *recipe_names()])}")
    counted = dataclasses.asdict(count(settings))
    if options.json:
        print(json.dumps({"model": name, **counted}))
    else:
        width = max(map(len, counted))
        for field, value in counted.items():
            print(f"{field.replace('_', ' '):{width}}  {value:>24,}")
    return 0


def _plan(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.plan.planner import chosen, plan, planned_recipe
    from lmjax.plan.report import explanation, lines

    if options.auto:
        return _search(options, overrides)
    if options.limit is not None:
        raise UserError(f"--limit {options.limit}: only a search compiles several; add --auto")
    stage, before = chosen(_overridden(options, overrides), options.stage)
    recipe = planned_recipe(stage, options.topology, options.mesh)
    if options.explain:
        print(*explanation(recipe, before), sep="\n", file=sys.stderr if options.json else sys.stdout, flush=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = plan(recipe, hlo=options.hlo, save=options.save, step=options.step, before=before, say=say)
    print(found.to_json() if options.json else "\n".join(lines(found)))
    return 0


def _search(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.plan.cache import Cache
    from lmjax.plan.planner import parse_mesh, planned_recipe
    from lmjax.plan.search import DEFAULT_LIMIT, search
    from lmjax.plan.search_display import watching
    from lmjax.plan.tables import lines, run_command, to_json

    if options.stage is not None or options.step != "train":
        raise UserError("--auto: it searches for the training step of a pretraining; leave out --stage and --step")
    for name in ("explain", "hlo", "save"):
        if getattr(options, name):
            raise UserError(f"--auto with --{name}: expected one of them; plan the one you choose, then give --{name}")
    recipe = planned_recipe(_pretraining(options, overrides), options.topology)
    mesh = None if options.mesh is None else parse_mesh(options.mesh)
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    cache = Cache(say=lambda line: print(line, file=sys.stderr, flush=True))
    found = search(recipe, mesh, limit, cache=cache, watch=watching)
    command = run_command(found, options.recipe, overrides)
    print(to_json(found, command) if options.json else "\n".join(lines(found, command)))
    return 0


def _generate(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.completions import print_completions

    prompts = options.prompt or [sys.stdin.read().removesuffix("\n")]
    print_completions(options.checkpoint, prompts, as_json=options.json, top=options.top, **_sampling(options))
    return 0


def _score(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.score import print_scores

    print_scores(options.checkpoint, options.file, as_json=options.json, skip_bad=options.skip_bad)
    return 0


def _chat(options: argparse.Namespace, _: list[str]) -> int:
    lmjax.load(options.checkpoint).chat(**_sampling(options))
    return 0


def _tokenizer_train(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.stages.prepare_data import train_tokenizer
    from lmjax.training.progress import ProgressDisplay

    recipe = _pretraining(options, overrides)
    tokenizer = train_tokenizer(recipe, options.out, ProgressDisplay())
    print(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} entries written to {options.out}")
    return 0


def _data_prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from lmjax.stages.prepare_data import prepare_data
    from lmjax.training.progress import ProgressDisplay

    recipe = _pretraining(options, overrides)
    training = prepare_data(recipe, options.out, ProgressDisplay(), workers=options.workers)
    print("to train from them:\n ", shlex.join(["lmjax", "run", options.recipe, *overrides, *training]))
    return 0


def _report(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.report.page import write_report

    print(write_report(options.workdir))
    return 0


def _import_hf(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.convert import import_folder

    print(import_folder(options.folder, options.out))
    return 0


def _export_hf(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.convert import export_folder

    print(export_folder(options.checkpoint, options.out, keep_rows=options.keep_rows))
    return 0


def _overridden(options: argparse.Namespace, overrides: list[str]) -> Any:
    from lmjax.runs.overrides import overridden
    from lmjax.settings.recipe_files import load_recipe

    return overridden(load_recipe(options.recipe), overrides, options.recipe, options.parser.prog)


def _pretraining(options: argparse.Namespace, overrides: list[str]) -> Any:
    """The recipe, or the first stage of its pipeline, which must be a pretraining."""
    from lmjax.stages.registry import kind_of

    first = _overridden(options, overrides).stages[0]
    if not kind_of(first).prepares_text:
        what = f"{options.recipe}: expected a recipe that pretrains, or a pipeline that begins so"
        raise UserError(f"{what}; it is of the stage {type(first).__name__}")
    return first


def _nearest_option(parser: argparse.ArgumentParser, wrong: str) -> str:
    return nearest(wrong.partition("=")[0], sorted(set(re.findall(r"--[a-z-]+", parser.format_help()))))


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "beyond_context")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None} | {"stop": tuple(options.stop)}


class _Parser(argparse.ArgumentParser):
    """Repeats no word of thousands of characters in an error."""

    def error(self, message: str) -> NoReturn:
        super().error(readable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("lmjax", description="A JAX/Flax training stack for language models.")
    parser.add_argument("--version", action="version", version=f"lmjax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _add(commands, "run", _run, "train what a recipe says; the same command resumes", "lmjax run quickstart")
    run.set_defaults(takes_overrides=True)
    run.add_argument(
        "recipe", metavar="RECIPE", help="a path, or a name in experiments/, with :SIZE where it has sizes"
    )
    run.add_argument("--workdir", type=_path, help="where everything is written (default: runs/NAME)")
    text = "where runs share their tokens (default: the folder cache beside the workdir)"
    run.add_argument("--cache", type=_path, metavar="DIR", help=text)
    run.add_argument("--force", action="store_true", help="resume although the recipe changes the rest of the run")
    run.add_argument("--only", metavar="STAGE", help="of a pipeline: run this stage alone")
    run.add_argument("--from", dest="start_from", metavar="STAGE", help="of a pipeline: run anew from this stage on")
    run.add_argument("--executable", type=_path, metavar="FILE", help="the step, as lmjax plan --save wrote it")
    run.add_argument("--fields", action="store_true", help="list every field that can be set, with its value")
    run.epilog = (run.epilog or "") + "\n  lmjax run gpt2:355m --train.steps 100\n  lmjax run instructgpt --from reward"

    count = _add(commands, "count", _count, "parameters and FLOPs from shapes alone", "lmjax count gpt3_175b --json")
    count.set_defaults(takes_overrides=True)
    count.add_argument("recipe", metavar="PRESET_OR_RECIPE")
    count.add_argument("--json", action="store_true")

    _add_plan(commands)
    example = 'lmjax generate runs/quickstart --prompt "The array" --top 5'
    generate = _add(commands, "generate", _generate, "continue prompts", example)
    _add_sampling(generate)
    generate.add_argument(
        "--prompt", action="append", help="may be repeated; default: standard input, without its last line end"
    )
    generate.add_argument("--top", type=int, default=0, help="show the K most likely tokens of each step")
    generate.add_argument("--json", action="store_true", help="one object per prompt")

    _add_sampling(_add(commands, "chat", _chat, "talk to a checkpoint", "lmjax chat runs/quickstart"))

    text = "a reward model's score of each answer in a file"
    score = _add(commands, "score", _score, text, "lmjax score runs/instructgpt/reward answers.jsonl")
    score.add_argument("checkpoint", type=_path, help="a reward model's workdir or checkpoint")
    score.add_argument("file", type=_path, help="prompts and answers, in any of the shapes that training takes")
    score.add_argument("--json", action="store_true", help="one object per answer")
    score.add_argument("--skip-bad", action="store_true", help="leave bad records out, and name them")

    _add_prepare(commands)
    report = _add(commands, "report", _report, "write report.html of a run", "lmjax report runs/quickstart")
    report.add_argument("workdir", type=_path)

    reader = _add(
        commands, "import-hf", _import_hf, "a Hugging Face folder becomes a checkpoint", "lmjax import-hf gpt2/ out/"
    )
    reader.add_argument("folder", type=_path)
    reader.add_argument("out", type=_path)
    writer = _add(
        commands,
        "export-hf",
        _export_hf,
        "a checkpoint becomes a Hugging Face folder",
        "lmjax export-hf runs/gpt2 out/",
    )
    writer.add_argument("checkpoint", type=_path)
    writer.add_argument("out", type=_path)
    text = "write the rows of the table that no token has, too; other libraries give them probability"
    writer.add_argument("--keep-rows", action="store_true", help=text)
    return parser


def _add(commands: Any, name: str, call: Command, text: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(call=call, takes_overrides=False, parser=command)
    return command


def _add_plan(commands: Any) -> None:
    text = "compile a recipe's step for a TPU slice that is not attached; estimate memory and time"
    plan = _add(commands, "plan", _plan, text, "lmjax plan gpt2 --topology v5e-16 --mesh fsdp=16")
    plan.set_defaults(takes_overrides=True)
    plan.add_argument("recipe", metavar="RECIPE")
    plan.add_argument("--topology", help="a slice such as v5e-256, v5p-1024 or 2xv6e-64 (default: plan.topology)")
    plan.add_argument("--mesh", help="sizes of its axes, as in fsdp=64,tensor=4 (default: the recipe's)")
    plan.add_argument("--stage", metavar="NAME", help="of a pipeline (default: the first that names a slice, or is)")
    plan.add_argument(
        "--step",
        choices=("train", "eval", "generate"),
        default="train",
        help="of a pretraining: its step, its validation, or the continuation of a batch of prompts (default: train)",
    )
    plan.add_argument("--explain", action="store_true", help="show how every parameter and activation is cut")
    plan.epilog = (plan.epilog or "") + "\n  lmjax plan gpt3:6.7b --topology v5p-128 --auto --limit 12"
    text = "rank mesh, microbatches, remat policy and kernel block by compiling the most promising, under the HBM limit"
    plan.add_argument("--auto", action="store_true", help=text)
    text = "candidates that --auto compiles (default: 8); what was compiled is kept in ~/.cache/lmjax/plans"
    plan.add_argument("--limit", type=int, metavar="N", help=text)
    plan.add_argument("--json", action="store_true")
    plan.add_argument("--hlo", type=_path, help="write the optimized HLO text to this file")
    plan.add_argument("--save", type=_path, help="write the serialized executable to this file")


def _add_prepare(commands: Any) -> None:
    for group, action, call, text, out in (
        ("tokenizer", "train", _tokenizer_train, "train a recipe's tokenizer", "tokenizer"),
        ("data", "prepare", _data_prepare, "write a recipe's token shards", "shards"),
    ):
        actions = commands.add_parser(group, help=text).add_subparsers(dest="action", required=True, metavar="ACTION")
        command = _add(actions, action, call, text, f"lmjax {group} {action} quickstart --out {out}/")
        command.set_defaults(takes_overrides=True)
        command.add_argument("recipe", metavar="RECIPE")
        command.add_argument("--out", type=_path, required=True)
        if group == "data":
            command.add_argument("--workers", type=int, help="processes (default: one per core)")


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", type=_path, help="a workdir, a stage's checkpoints or one step's folder")
    command.add_argument("--max-tokens", type=int)
    command.add_argument("--temperature", type=float, help="0 is greedy")
    command.add_argument("--top-k", type=int)
    command.add_argument("--top-p", type=float)
    command.add_argument("--repetition-penalty", type=float)
    command.add_argument("--stop", action="append", default=[], help="stop before this string; may be repeated")
    command.add_argument("--seed", type=int)
    text = "where the context is full: stop (default), or read its last half again and continue"
    command.add_argument("--beyond-context", choices=("stop", "slide"), help=text)


if __name__ == "__main__":
    sys.exit(main())
