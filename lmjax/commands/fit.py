"""`lmjax fit TABLE`: scaling laws of a table of finished runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.commands.command import TABLE, add_command, path_of, require_png
from lmjax.errors import UserError

METHODS = ("chinchilla", "isoflop", "envelope", "kaplan")
ROLES = ("params", "tokens", "flops", "loss", "budget", "steps", "accuracy")
MOST_SAMPLES = 100_000


def add(commands: Any) -> None:
    fit = add_command(
        *(commands, "fit", _fit, "fit scaling laws to a table of runs (CSV, JSON, JSONL, Parquet)"),
        "lmjax fit sweep.jsonl --method all",
        'lmjax fit runs.csv --params-column "Model Size" --where dataset=comma --json',
    )
    fit.add_argument("table", type=path_of, metavar="TABLE", help=TABLE)
    text = "chinchilla: approach 3 (default); isoflop: approach 2; envelope: approach 1; kaplan: its five power laws"
    fit.add_argument("--method", choices=(*METHODS, "all"), default="chinchilla", help=text)
    add_selection(fit)
    text = "samples for intervals, 0 for none (default: 200)"
    fit.add_argument("--bootstrap", type=int, default=200, metavar="N", help=text)
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap samples (default: 0)")
    text = "a prediction above a row costs X times one below it (default: 1); runs that are badly tuned then pull less"
    fit.add_argument("--asymmetry", type=float, default=1.0, metavar="X", help=text)
    text = "say how much compute TABLE saves over this one at equal loss, along both frontiers of approach 3"
    fit.add_argument("--against", type=path_of, metavar="TABLE2", help=text)
    text = "as --where, of TABLE2 (default: the same conditions as of TABLE)"
    fit.add_argument("--against-where", action="append", metavar="CONDITION", help=text)
    text = "draw losses with the frontier, IsoFLOP curves, optima and residuals"
    fit.add_argument("--plot", type=path_of, metavar="FILE.png", help=text)
    fit.add_argument("--json", action="store_true", help="print one object; of kaplan and all: a list")


def add_selection(command: argparse.ArgumentParser) -> None:
    for role in ROLES:
        default = "adds the second step, from loss to accuracy" if role == "accuracy" else "default: by common names"
        command.add_argument(f"--{role}-column", metavar="NAME", help=f"of {role} ({default})")
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
    from lmjax.scaling.result import finite
    from lmjax.scaling.table import described

    table, held_out = read_selected(options.table, options, options.where).split()
    how = FitOptions(options.bootstrap, options.seed, options.asymmetry, held_out)
    results, failed = fit_table(table, options.method, how)
    if options.accuracy_column is not None:
        results.append(_second_step(results, failed, how))
    saved = _savings(table, options, how)
    if options.plot is not None:
        from lmjax.scaling.plot import write_plot

        write_plot(options.plot, table, results, held_out)
    if options.json:
        printed = [result.to_json() for result in results]
        printed[0] |= {"accuracy": printed.pop()} if options.accuracy_column is not None else {}
        printed[0] |= {"savings": [saving._asdict() for saving in saved]} if saved else {}
        print(json.dumps(finite(printed if options.method in ("kaplan", "all") else printed[0]), allow_nan=False))
    else:
        print(described(table))
        for result in results:
            print("", *result.lines(), sep="\n")
        _print_savings(saved, options)
    for line in failed:
        print(line, file=sys.stderr)
    return 0


def _second_step(results: list[Any], failed: list[str], how: Any) -> Any:
    from lmjax.scaling.accuracy import second_step

    first = next((result for result in results if result.fit is not None), None)
    if first is None:
        raise UserError(f"--accuracy-column: no loss can be predicted; {failed[0]}")
    return second_step(first, how)


def _savings(table: Any, options: argparse.Namespace, how: Any) -> list[Any]:
    if options.against is None:
        return []
    from lmjax.scaling.frontier import savings

    conditions = options.where if options.against_where is None else options.against_where
    other, _ = read_selected(options.against, options, conditions).split()
    return savings(table, other, how)


def _print_savings(saved: list[Any], options: argparse.Namespace) -> None:
    if not saved:
        return
    print(
        f"\nat equal loss, along both frontiers; {options.against} as the other, whose loss must be of the same text:"
    )
    print(f"  {'loss':8}{'C':>12}{'C of other':>12}  other / this")
    for each in saved:
        ends = f"  {each.interval[0]:.3g} to {each.interval[1]:.3g}" if each.interval else ""
        print(f"  {each.loss:<8.4g}{each.flops:>12.3g}{each.other_flops:>12.3g}  {each.ratio:.3g}{ends}")


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.bootstrap <= MOST_SAMPLES:
        raise UserError(f"--bootstrap {options.bootstrap}: expected 0 to {MOST_SAMPLES:,} samples; 1000 are many")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: expected a number of at least 0; leave it out")
    if not 1 <= options.asymmetry <= 1_000:
        raise UserError(f"--asymmetry {options.asymmetry:g}: expected 1 (symmetric) to 1000; 10 is heavy")
    require_png(options.plot)
    if options.accuracy_column is not None and options.method not in ("chinchilla", "all"):
        raise UserError(f"--accuracy-column with --method {options.method}: expected chinchilla, which predicts a loss")
    if options.against_where is not None and options.against is None:
        raise UserError("--against-where: it chooses rows of a second table; name one by --against")


def read_selected(path: Path, options: argparse.Namespace, conditions: Sequence[str]) -> Any:
    """The table in a file, with the columns and rows that the options and conditions select."""
    from lmjax.scaling.table import Selection, read_table

    given: dict[str, Any] = {role: getattr(options, f"{role}_column") for role in ROLES}
    given |= {name: getattr(options, name) for name in ("drop_highest_loss", "duplicates", "skip_bad", "perplexity")}
    return read_table(path, Selection(**given, where=tuple(conditions), hold_out=tuple(options.hold_out)))
