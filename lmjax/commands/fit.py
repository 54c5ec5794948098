"""`lmjax fit TABLE`: scaling laws of a table of finished runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from lmjax.commands.command import add_command, path_of
from lmjax.errors import UserError

METHODS = ("chinchilla", "isoflop", "envelope", "kaplan")
ROLES = ("params", "tokens", "flops", "loss", "budget", "steps")
MOST_SAMPLES = 100_000


def add(commands: Any) -> None:
    fit = add_command(
        *(commands, "fit", _fit, "fit scaling laws to a table of runs (CSV, JSON, JSONL, Parquet)"),
        "lmjax fit sweep.jsonl --method all",
        'lmjax fit runs.csv --params-column "Model Size" --where dataset=comma --json',
    )
    fit.add_argument("table", type=path_of, metavar="TABLE")
    text = "chinchilla: approach 3 (default); isoflop: approach 2; envelope: approach 1; kaplan: its five power laws"
    fit.add_argument("--method", choices=(*METHODS, "all"), default="chinchilla", help=text)
    _add_selection(fit)
    text = "samples for intervals, 0 for none (default: 200)"
    fit.add_argument("--bootstrap", type=int, default=200, metavar="N", help=text)
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap samples (default: 0)")
    text = "a prediction above a row costs X times one below it (default: 1); runs that are badly tuned then pull less"
    fit.add_argument("--asymmetry", type=float, default=1.0, metavar="X", help=text)
    fit.add_argument("--json", action="store_true", help="print one object; of kaplan and all: a list")


def _add_selection(command: argparse.ArgumentParser) -> None:
    for role in ROLES:
        command.add_argument(f"--{role}-column", metavar="NAME", help=f"of {role} (default: by common names)")
    text = "use rows where COLUMN=VALUE (or != < <= > >=); may be repeated"
    command.add_argument("--where", action="append", default=[], metavar="CONDITION", help=text)
    text = "rows that are predicted instead of fitted; may be repeated, then rows that fit all conditions"
    command.add_argument("--hold-out", action="append", default=[], metavar="CONDITION", help=text)
    command.add_argument("--drop-highest-loss", type=int, default=0, metavar="K", help="leave out the K highest losses")
    text = "rows of one (N, D): use all (default), or the best"
    command.add_argument("--duplicates", choices=("all", "best"), default="all", help=text)
    command.add_argument("--perplexity", action="store_true", help="the loss column holds perplexities")
    text = "leave out rows without a finite loss and sizes above 0, and name them"
    command.add_argument("--skip-bad", action="store_true", help=text)


def _fit(options: argparse.Namespace, _: list[str]) -> int:
    _check(options)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # float64 on the CPU; an accelerator may be another process's
    from lmjax.scaling.bootstrap import FitOptions
    from lmjax.scaling.methods import fit_table

    table, held_out = read_selected(options).split()
    how = FitOptions(options.bootstrap, options.seed, options.asymmetry, held_out)
    results, failed = fit_table(table, options.method, how)
    if options.json:
        printed = [result.to_json() for result in results]
        print(json.dumps(printed if options.method in ("kaplan", "all") else printed[0], allow_nan=False))
    else:
        print("\n\n".join("\n".join(result.lines()) for result in results))
    for line in failed:
        print(line, file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.bootstrap <= MOST_SAMPLES:
        raise UserError(f"--bootstrap {options.bootstrap}: expected 0 to {MOST_SAMPLES:,} samples; 1000 are many")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: expected a number of at least 0; leave it out")
    if not 1 <= options.asymmetry <= 1_000:
        raise UserError(f"--asymmetry {options.asymmetry:g}: expected 1 (symmetric) to 1000; 10 is heavy")


def read_selected(options: argparse.Namespace) -> Any:
    """The table that the options select."""
    from lmjax.scaling.table import Selection, read_table

    given: dict[str, Any] = {role: getattr(options, f"{role}_column") for role in ROLES}
    given |= {name: getattr(options, name) for name in ("drop_highest_loss", "duplicates", "skip_bad", "perplexity")}
    return read_table(options.table, Selection(**given, where=tuple(options.where), hold_out=tuple(options.hold_out)))
