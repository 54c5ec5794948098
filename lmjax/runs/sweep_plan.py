"""What a sweep will run and what that costs, for `lmjax sweep --dry-run` and `lmjax sweep --plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmjax.plan.slices import Slice
from lmjax.run_files import TABLE_FILE
from lmjax.runs.slice_hours import SliceTime
from lmjax.runs.sweep_rows import check_table
from lmjax.runs.sweep_size import seconds_of, size_of
from lmjax.runs.sweep_units import share_of
from lmjax.scaling.ladder import size_text
from lmjax.scaling.sweep_table import SweepTable
from lmjax.settings import Sweep, SweepRun

TO_RUN = "to run"


def planned(
    sweep: Sweep,
    folder: Path,
    shard: tuple[int, int] = (1, 1),
    time_of: Callable[[SweepRun], SliceTime] | None = None,
) -> list[dict[str, Any]]:
    """The runs of a share in the order in which they are run: sizes, rate, batch, hours and whether there is a row.

    `hours` are of the steps: on a slice, as `time_of` says, with the `refusal` of a run that does not fit; or else at
    the speed of the table's finished runs, and None before there are any. Raises UserError where the table is of
    another sweep.
    """
    table = SweepTable(folder / TABLE_FILE, print)
    rows = table.rows()
    check_table(sweep, table.path, rows)
    found = []
    for unit in share_of(sweep, shard):
        for one in unit:
            size, stage = size_of(one), one.stage
            time = time_of(one) if time_of else SliceTime(seconds_of(size, rows))
            found.append(
                {"name": one.name, "status": rows.get(one.name, {}).get("status", TO_RUN), "trunk": one.trunk}
                | dataclasses.asdict(size)
                | {"steps": stage.train.steps, "batch_size": stage.data.batch_size}
                | {"learning_rate": stage.optimizer.learning_rate, "warmup": stage.optimizer.schedule.warmup}
                | {"hours": None if time.seconds is None else time.seconds / 3600, "reason": one.reason}
                | ({"refusal": time.refusal} if time_of else {})
            )
    return found


def shown(runs: Sequence[dict[str, Any]]) -> str:
    """A line for each run, the rules' arithmetic, and the sums of what is still to run."""
    hours = [run["hours"] for run in runs if run["status"] == TO_RUN]
    known = "; the hours are known once a run has finished" if None in hours else f", {_hours(sum(hours))} hours"
    return "\n".join([*_lines(runs), f"{_sum(runs)}{known}"])


def totals(runs: Sequence[dict[str, Any]], where: Slice) -> dict[str, Any]:
    """Slice-hours and chip-hours of what is still to run, and how many of these runs the slice cannot run."""
    hours = [run["hours"] for run in runs if run["status"] == TO_RUN]
    known = sum(each for each in hours if each is not None)
    figures = {"topology": where.name, "chips": where.chips}
    return figures | {"slice_hours": known, "chip_hours": known * where.chips, "refused": hours.count(None)}


def shown_on(runs: Sequence[dict[str, Any]], where: Slice) -> str:
    """The same for a slice, on the whole of which each run is trained: what does not fit, slice-hours, chip-hours."""
    told, found = _lines(runs), totals(runs, where)
    told += dict.fromkeys(f"{run['name']}: {run['refusal']}" for run in runs if run["refusal"])
    sums = f"{_hours(found['slice_hours'])} slice-hours on {where.name}, {_hours(found['chip_hours'])} chip-hours"
    refused = f"; {found['refused']} cannot run there and are not counted" if found["refused"] else ""
    return "\n".join([*told, f"{_sum(runs)}, {sums}{refused}: of the steps alone, as the compiler estimates them"])


def _lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    width = max(len(run["name"]) for run in runs) if runs else 4
    lines = [f"{'run':{width}}  {'N':>7} {'D':>7} {'FLOPs':>9} {'steps':>7} {'rows':>5} {'rate':>9} {'hours':>8}"]
    for run in runs:
        spent = f"{run['flops_spent']:.2e}"
        lines.append(
            f"{run['name']:{width}}  {size_text(run['parameters']):>7} {size_text(run['tokens']):>7} {spent:>9} "
            f"{run['steps']:>7,} {run['batch_size']:>5} {run['learning_rate']:>9.3g} {_hours(run['hours']):>8}  "
            f"{run['status']}" + (f", from {run['trunk']}" if run["trunk"] else "")
        )
    return [*lines, *dict.fromkeys(run["reason"] for run in runs if run["reason"])]


def _sum(runs: Sequence[dict[str, Any]]) -> str:
    left = [run for run in runs if run["status"] == TO_RUN]
    return f"{len(left)} runs to run, {sum(run['flops_spent'] for run in left):.3g} FLOPs"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:.3g}"
