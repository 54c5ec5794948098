"""`lmjax run` trains, `lmjax recipe` prints what it would train, `lmjax report` writes the page of what was trained."""

from __future__ import annotations

import argparse
import os
from typing import Any

import lmjax
from lmjax.commands.command import RECIPE, add_command, overridden_recipe, path_of, print_help
from lmjax.run_files import TABLE_FILE


def add(commands: Any) -> None:
    run = add_command(
        *(commands, "run", _run, "train what a recipe says; the same command resumes"),
        *("lmjax run quickstart", "lmjax run gpt2:355m --train.steps 100", "lmjax run instructgpt --from reward"),
    )
    run.set_defaults(takes_overrides=True)
    run.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    run.add_argument("--workdir", type=path_of, help="where everything is written (default: runs/NAME)")
    text = "where runs share their tokens (default: the folder cache beside the workdir)"
    run.add_argument("--cache", type=path_of, metavar="DIR", help=text)
    run.add_argument("--force", action="store_true", help="resume although the recipe changes the rest of the run")
    run.add_argument("--only", metavar="STAGE", help="of a pipeline: run this stage alone")
    run.add_argument("--from", dest="start_from", metavar="STAGE", help="of a pipeline: run anew from this stage on")
    run.add_argument("--executable", type=path_of, metavar="FILE", help="the step, as lmjax plan --save wrote it")
    text = "run the stage with each of these seeds, and print mean and deviation of what is measured"
    run.add_argument("--seeds", type=_seeds, metavar="N,N,...", help=text)
    text = "say what it would do and all that is missing, with the recipe and, for a slice, the memory; write nothing"
    run.add_argument("--dry-run", action="store_true", help=text)
    run.add_argument("--fields", action="store_true", help="list every field that can be set, with its value")
    text = "print a recipe with all its arguments and fields set, as a recipe file"
    examples = ("lmjax recipe gpt2:355m --train.steps 100 > mine.py", "lmjax recipe isoflop:quick")
    recipe = add_command(commands, "recipe", _recipe, text, *examples)
    recipe.set_defaults(takes_overrides=True)
    recipe.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    report = add_command(
        commands, "report", _report, "write report.html of a run or a sweep", "lmjax report runs/quickstart"
    )
    report.add_argument("workdir", type=path_of, help="of a run or a sweep")


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.fields:
        return print_help(options, overrides)
    recipe = overridden_recipe(options, overrides)
    if options.dry_run:
        from lmjax.runs.dry_run import dry_run

        dry_run(recipe, options.workdir)
        return 0
    names = ("workdir", "force", "only", "start_from", "executable", "cache")
    arguments = {name: getattr(options, name) for name in names}
    if options.seeds is None:
        return lmjax.run(recipe, **arguments).exit_code
    from lmjax.runs.seeds import run_seeds

    return run_seeds(recipe, options.seeds, **arguments).exit_code


def _recipe(options: argparse.Namespace, overrides: list[str]) -> int:
    import shlex

    from lmjax.settings.recipe_source import source_of

    command = shlex.join(["lmjax", "recipe", options.recipe, *overrides])
    print(source_of(overridden_recipe(options, overrides, sweeps=True), f"As `{command}` printed it."), end="")
    return 0


def _seeds(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _report(options: argparse.Namespace, _: list[str]) -> int:
    table = options.workdir / TABLE_FILE
    if table.is_file():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for its fits, in float64
        from lmjax.scaling.sweep_page import write_sweep_report

        print(write_sweep_report(options.workdir, table))
        return 0
    from lmjax.report.page import write_report

    print(write_report(options.workdir))
    return 0
