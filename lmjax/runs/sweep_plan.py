"""What a sweep will run and what that costs, for `lmjax sweep --dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.runs.sweep_rows import TABLE_FILE, check_table
from lmjax.runs.sweep_size import seconds_of, size_of
from lmjax.runs.sweep_units import share_of
from lmjax.scaling.ladder import Size
from lmjax.scaling.sweep_table import SweepTable
from lmjax.settings import Sweep

TO_RUN = "to run"


def planned(sweep: Sweep, folder: Path, shard: tuple[int, int] = (1, 1)) -> list[dict[str, Any]]:
    """The runs of a share in the order in which they are run: sizes, rate, batch, hours and whether there is a row.

    `hours` are of the steps, at the speed of the table's finished runs; None before there are any. Raises UserError
    where the table is of another sweep.
    """
    rows = SweepTable(folder / TABLE_FILE, print).rows()
    check_table(sweep, folder, rows)
    found = []
    for unit in share_of(sweep, shard):
        for one in unit:
            size, stage = size_of(one), one.stage
            seconds = seconds_of(size, rows)
            found.append(
                {"name": one.name, "status": rows.get(one.name, {}).get("status", TO_RUN), "trunk": one.trunk}
                | dataclasses.asdict(size)
                | {"steps": stage.train.steps, "batch_size": stage.data.batch_size}
                | {"learning_rate": stage.optimizer.learning_rate, "warmup": stage.optimizer.schedule.warmup}
                | {"hours": None if seconds is None else seconds / 3600, "reason": one.reason}
            )
    return found


def shown(runs: Sequence[dict[str, Any]]) -> str:
    """A line for each run, the rules' arithmetic, and the sums of what is still to run."""
    width = max(len(run["name"]) for run in runs) if runs else 4
    lines = [f"{'run':{width}}  {'N':>7} {'D':>7} {'FLOPs':>9} {'steps':>7} {'rows':>5} {'rate':>9} {'hours':>8}"]
    for run in runs:
        spent = f"{run['flops_spent']:.2e}"
        lines.append(
            f"{run['name']:{width}}  {Size(run['parameters']):>7} {Size(run['tokens']):>7} {spent:>9} "
            f"{run['steps']:>7,} {run['batch_size']:>5} {run['learning_rate']:>9.3g} {_hours(run['hours']):>8}  "
            f"{run['status']}" + (f", from {run['trunk']}" if run["trunk"] else "")
        )
    reasons = dict.fromkeys(run["reason"] for run in runs if run["reason"])
    left = [run for run in runs if run["status"] == TO_RUN]
    hours = [run["hours"] for run in left]
    known = "" if None in hours else f", {_hours(sum(hours))} hours"
    told = "" if None not in hours else "; the hours are known once a run has finished"
    lines += [*reasons, f"{len(left)} runs to run, {sum(run['flops_spent'] for run in left):.3g} FLOPs{known}{told}"]
    return "\n".join(lines)


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.3g}"
