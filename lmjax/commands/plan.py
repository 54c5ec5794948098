"""`lmjax count` and `lmjax plan`: what a recipe costs, told without the machine that it is for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from typing import Any

from lmjax.commands.command import RECIPE, add_command, overridden_recipe, path_of, pretraining
from lmjax.errors import UserError, nearest


def add(commands: Any) -> None:
    count = add_command(
        commands, "count", _count, "parameters and FLOPs from shapes alone", "lmjax count gpt3_175b --json"
    )
    count.set_defaults(takes_overrides=True)
    count.add_argument("recipe", metavar="PRESET_OR_RECIPE", help="such as gpt3_6b, quickstart or mine.py")
    count.add_argument("--json", action="store_true", help="print one object")
    _add_plan(commands)


def _add_plan(commands: Any) -> None:
    text = "compile a recipe's step for a TPU slice that is not attached; estimate memory and time"
    examples = ("gpt2 --topology v5e-16 --mesh fsdp=16", "gpt3:6700m --topology v5p-128 --auto --limit 12")
    plan = add_command(commands, "plan", _plan, text, *(f"lmjax plan {example}" for example in examples))
    plan.set_defaults(takes_overrides=True)
    plan.add_argument("recipe", metavar="RECIPE", help=RECIPE)
    plan.add_argument("--topology", help="a slice such as v5e-256, v5p-1024 or 2xv6e-64 (default: plan.topology)")
    plan.add_argument("--mesh", help="sizes of its axes, as in fsdp=64,tensor=4 (default: the recipe's, or chosen)")
    plan.add_argument("--stage", metavar="NAME", help="of a pipeline (default: the first that names a slice, or is)")
    plan.add_argument(
        "--step",
        choices=("train", "eval", "generate"),
        default="train",
        help="of a pretraining: its step, its validation, or the continuation of a batch of prompts (default: train)",
    )
    plan.add_argument("--explain", action="store_true", help="show how every parameter and activation is cut")
    text = "rank mesh, microbatches, remat policy and kernel block by compiling the most promising, under the HBM limit"
    plan.add_argument("--auto", action="store_true", help=text)
    text = "candidates that --auto compiles (default: 8); what was compiled is kept in ~/.cache/lmjax/plans"
    plan.add_argument("--limit", type=int, metavar="N", help=text)
    text = "after which --auto begins none (default: 9, or 25 from a billion parameters); the same command resumes"
    plan.add_argument("--minutes", type=float, metavar="M", help=text)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--hlo", type=path_of, help="write the optimized HLO text to this file")
    plan.add_argument("--save", type=path_of, help="write the serialized executable to this file")


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
        settings = known_model(pretraining(options, overrides))
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
    for name in ("limit", "minutes"):
        if (value := getattr(options, name)) is not None:
            raise UserError(f"--{name} {value}: only a search compiles several; add --auto")
    stage, before = chosen(overridden_recipe(options, overrides), options.stage)
    recipe = planned_recipe(stage, options.topology, options.mesh)
    if options.explain:
        print(*explanation(recipe, before), sep="\n", file=sys.stderr if options.json else sys.stdout, flush=True)
    found = plan(recipe, hlo=options.hlo, save=options.save, step=options.step, before=before, say=_say)
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
    recipe = planned_recipe(pretraining(options, overrides), options.topology)
    mesh = None if options.mesh is None else parse_mesh(options.mesh)
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    cache = Cache(say=_say)
    found = search(recipe, mesh, limit, options.minutes, cache=cache, watch=watching)
    command = run_command(found, options.recipe, overrides)
    print(to_json(found, command) if options.json else "\n".join(lines(found, command)))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
