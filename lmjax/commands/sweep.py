"""`lmjax sweep` trains the runs of a sweep that its table lacks, or says what they would cost."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmjax.commands.command import add_command, path_of, share

if TYPE_CHECKING:
    from lmjax.runs.slice_hours import SlicePlanner
    from lmjax.settings import Sweep


def add(commands: object) -> None:
    sweep = add_command(
        *(commands, "sweep", _sweep, "train the runs of a sweep that its table lacks; the same command continues"),
        *(
            "lmjax sweep isoflop.py --dry-run",
            "lmjax sweep isoflop.py --shard 2/4",
            "lmjax sweep isoflop.py --plan --topology v5e-64",
        ),
    )
    sweep.add_argument(
        "recipe", metavar="RECIPE", help="a file whose recipe() returns a Sweep, or a name in experiments/"
    )
    sweep.add_argument("--workdir", type=path_of, help="where table and runs are written (default: runs/NAME)")
    sweep.add_argument("--cache", type=path_of, metavar="DIR", help="where tokens are kept (default: in the workdir)")
    sweep.add_argument("--shard", type=share, default=(1, 1), metavar="I/N", help="take the I-th of N even shares")
    text = "train up to N runs that differ in seed and rate alone as one program; they leave rows, and no checkpoints"
    sweep.add_argument("--together", type=int, default=1, metavar="N", help=text)
    text = (
        "cut this host's devices into N parts and train a run on each, beside each other; with --plan, the hosts of "
        "the slice, or 'auto' to compare all parts and name the cheapest per token"
    )
    sweep.add_argument("--pack", type=_parts, metavar="N", help=text)
    text = "train the runs whose row says that they failed or diverged, too"
    sweep.add_argument("--again", action="store_true", help=text)
    sweep.add_argument("--dry-run", action="store_true", help="print every run with its size and cost, and train none")
    text = "the same for a TPU slice that is not attached: each distinct shape is compiled for it; gives slice-hours"
    sweep.add_argument("--plan", action="store_true", help=text)
    sweep.add_argument("--topology", help="with --plan: a slice such as v5e-64 or 2xv6e-64")
    text = "add the rows that the table lacks from those of other workdirs of this sweep, and train none"
    sweep.add_argument("--merge", nargs="+", type=path_of, metavar="TABLE", help=text)
    sweep.add_argument("--parquet", type=path_of, metavar="FILE", help="write the table as Parquet, too")
    sweep.add_argument("--verbose", action="store_true", help="show what each run says, with its progress")
    sweep.add_argument("--json", action="store_true", help="with --dry-run or --plan: print JSON")


def _parts(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of parts, or with --plan 'auto'")
    return text if text == "auto" else int(text)


def _sweep(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.errors import require
    from lmjax.run_files import TABLE_FILE
    from lmjax.runs.sweep import run_sweep
    from lmjax.runs.sweep_merge import merge_tables
    from lmjax.runs.sweep_plan import planned, shown
    from lmjax.scaling.sweep_table import write_parquet
    from lmjax.settings.recipe_files import load_sweep

    sweep = load_sweep(options.recipe)
    untrained = options.dry_run or options.plan
    require(untrained or not options.json, "--json", True, "--dry-run or --plan with it", "leave it out")
    alone = not options.merge or (not untrained and options.shard == (1, 1))
    require(
        alone, "--merge", len(options.merge or ()), "neither --shard, --dry-run nor --plan with it", "leave them out"
    )
    both = "--plan and --topology together"
    require(bool(options.topology) == options.plan, "--topology", options.topology, both, "add the other: see --help")
    workdir = options.workdir or Path("runs") / sweep.name
    if options.plan:
        return _plan(options, sweep, workdir)
    if options.dry_run:
        runs = planned(sweep, workdir, options.shard)
        print(json.dumps(runs, indent=2) if options.json else shown(runs))
        return 0
    require(options.together > 0, "--together", options.together, "a number above 0", "leave it out for one by one")
    names = ("shard", "cache", "together", "verbose", "again")
    if options.merge:
        rows, code = merge_tables(sweep, workdir, options.merge), 0
    elif options.pack is not None:
        require(options.pack != "auto", "--pack", "auto", "a number, or --plan with it", "plan first: see --help")
        rows, code = _packed(options, sweep, workdir)
    else:
        result = run_sweep(sweep, workdir, **{name: getattr(options, name) for name in names})
        rows, code = result.rows, result.exit_code
    done = sum(one.name in rows for one in sweep.runs)
    print(f"{done} of {len(sweep.runs)} runs have a row: {workdir / TABLE_FILE}")
    if options.parquet:
        write_parquet(rows, options.parquet)
    return code


def _packed(options: argparse.Namespace, sweep: Sweep, workdir: Path) -> tuple[dict[str, Any], int]:
    from lmjax.run_files import TABLE_FILE
    from lmjax.runs.pack import run_packed, sweep_command
    from lmjax.runs.sweep import exit_code
    from lmjax.runs.sweep_rows import check_table
    from lmjax.runs.sweep_units import share_of
    from lmjax.scaling.sweep_table import SweepTable

    table = SweepTable(workdir / TABLE_FILE, print)
    check_table(sweep, table.path, table.rows())
    names = {one.name for unit in share_of(sweep, options.shard, options.together) for one in unit}
    shard = "/".join(map(str, options.shard))
    words = [options.recipe, "--workdir", str(workdir), "--shard", shard, "--together", str(options.together)]
    words += ["--cache", str(options.cache)] if options.cache else []
    words += [flag for flag in ("--verbose", "--again") if getattr(options, flag[2:])]
    code = run_packed(sweep_command(words), options.pack, lambda: names <= table.rows().keys(), print)
    return table.rows(), exit_code(table.rows()) if code is None else code


def _plan(options: argparse.Namespace, sweep: Sweep, workdir: Path) -> int:
    from lmjax.plan.cache import Cache
    from lmjax.runs.slice_hours import SlicePlanner
    from lmjax.runs.sweep_plan import planned, shown_on, totals

    planner = SlicePlanner(options.topology, Cache(say=_say), _say)
    if options.pack is not None:
        return _plan_packed(options, sweep, workdir, planner)
    runs = planned(sweep, workdir, options.shard, planner.time_of)
    text = json.dumps(totals(runs, planner.where) | {"runs": runs}, indent=2) if options.json else None
    print(text or shown_on(runs, planner.where))
    return 0


def _plan_packed(options: argparse.Namespace, sweep: Sweep, workdir: Path, planner: SlicePlanner) -> int:
    from lmjax.errors import require
    from lmjax.runs.pack_plan import packings, shown, totals
    from lmjax.runs.sweep_plan import TO_RUN, planned

    whole = options.shard == (1, 1)
    require(whole, "--shard", "/".join(map(str, options.shard)), "none with --plan --pack", "leave it out")
    left = [run["name"] for run in planned(sweep, workdir) if run["status"] == TO_RUN]
    pack = None if options.pack == "auto" else options.pack
    found = packings(sweep, left, planner.where, planner.hosts, lambda part: planner.on(part).time_of, pack)
    print(json.dumps(totals(found), indent=2) if options.json else shown(found, planner.where, len(left)))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
