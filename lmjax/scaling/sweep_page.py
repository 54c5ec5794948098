"""The report of a sweep: one page with its runs, the fits, the frontier, forecasts with their intervals, and its cost.

In: the workdir of a sweep, finished or not. Out: `report.html` there, which needs nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.files import write_whole
from lmjax.notation import decimals, duration, exact, rounded
from lmjax.report.charts import DARK, LIGHT
from lmjax.report.figures import png_of
from lmjax.report.page import REPORT_FILE
from lmjax.report.sections import State
from lmjax.report.template import render
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.forecast import Forecast, forecast
from lmjax.scaling.methods import fit_table
from lmjax.scaling.plot import drawn
from lmjax.scaling.result import Result
from lmjax.scaling.sweep_table import DONE, Row, SweepTable
from lmjax.scaling.table import Table, read_table
from lmjax.version import __version__

SAMPLES = 200
NEXT = 4.0  # times the largest budget, which the page projects


def write_sweep_report(folder: Path, table_file: Path) -> Path:
    """Writes the page of the table into the folder. Raises UserError for a table without rows, or a damaged one."""
    notes: list[str] = []
    rows = SweepTable(table_file, notes.append).rows()
    if not rows:
        raise UserError(f"{table_file}: no run has ended; run lmjax sweep first")
    values = _fitted(table_file, notes) | _of_rows(folder, list(rows.values()))
    write_whole(folder / REPORT_FILE, render("sweep.html", values | {"warnings": notes}))
    return folder / REPORT_FILE


def _of_rows(folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    bad = [row for row in rows if row["status"] != DONE]
    spent = sum(row["flops_spent"] for row in rows if row["status"] == DONE)
    seconds = sum(row.get("wall_seconds") or 0.0 for row in rows)
    devices = sorted({f"{row['devices']} x {row['device_kind']}" for row in rows if row.get("device_kind")})
    text = f"{exact(len(rows) - len(bad))} runs of {spent:.3g} FLOPs in {duration(seconds)} on {', '.join(devices)}"
    failed = f"; {exact(len(bad))} failed or diverged" if bad else ""
    return {
        "kind": "lmjax sweep",
        "heading": folder.resolve().name,
        "lead": f"{text}{failed}.",
        "state": State(True, f"{exact(len(rows))} rows."),
        "rows": [_row(row) for row in sorted(rows, key=lambda row: (row["flops"], row["parameters"]))],
        "environment": {},
        "light": LIGHT,
        "dark": DARK,
        "version": __version__,
        "source": "sweep",
        "recorded": max((row["finished"] for row in rows if row.get("finished")), default="")[:16].replace("T", " "),
    }


def _row(row: Row) -> tuple[str, ...]:
    def number(name: str, places: int = 4) -> str:
        return "" if row.get(name) is None else decimals(row[name], places)

    ended = row["status"] if row["status"] == DONE else f"{row['status']}: {row.get('error', '')[:200]}"
    time = "" if row.get("wall_seconds") is None else duration(row["wall_seconds"])
    sizes = (rounded(row["parameters"]), rounded(row["tokens"]), f"{row['flops']:.3g}")
    return (row["name"], *sizes, number("loss"), number("bits_per_byte"), number("epochs", 2), time, ended)


def _fitted(path: Path, notes: list[str]) -> dict[str, Any]:
    """Fits, their picture and forecasts; without them, a note that says why."""
    empty: dict[str, Any] = {"picture": "", "picture_words": "", "fits": [], "notes": [], "forecasts": []}
    empty |= {"convention": "", "samples": SAMPLES}
    try:
        table = read_table(path)
        results, failed = fit_table(table, "all", FitOptions(SAMPLES))
    except UserError as error:
        notes.append(f"no fit: {error}")
        return empty
    shown = [result for result in results if {"a", "b"} <= result.values.keys()]
    told = dict.fromkeys(note for result in shown for note in (*result.notes, *failed))
    return empty | {
        "picture": _picture(table, results),
        "picture_words": "Loss over compute with the frontier, IsoFLOP curves, optimal sizes and residuals.",
        "convention": table.convention,
        "fits": [_fit(result) for result in shown],
        "notes": list(told),
        "forecasts": _forecasts(table, notes),
    }


def _picture(table: Table, results: Sequence[Result]) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_of(lambda: drawn(table, results))).decode()}"


def _fit(result: Result) -> tuple[str, ...]:
    def value(name: str) -> str:
        if name not in result.values:
            return ""
        ends = result.intervals.get(name)
        return rounded(result.values[name]) + (f" ({rounded(ends[0])} to {rounded(ends[1])})" if ends else "")

    return (result.method, *map(value, ("a", "b", "E", "alpha", "beta")))


def _forecasts(table: Table, notes: list[str]) -> list[tuple[str, ...]]:
    """Of the largest budget, as if it were not known, and of one that is larger still."""
    largest = float(table.budget.max())
    out = []
    for flops in (largest, NEXT * largest):
        try:
            out.append(_forecast(forecast(table, flops, FitOptions(SAMPLES))))
        except UserError as error:
            notes.append(f"no forecast of {flops:.3g} FLOPs: {error}")
    return out


def _forecast(found: Forecast) -> tuple[str, ...]:
    ends = found.intervals.get("loss")
    spread = f"{decimals(ends[0])} to {decimals(ends[1])}" if ends else ""
    measured = error = ""
    if found.measured is not None:
        measured, error = decimals(found.measured.loss), f"{100 * found.measured.error:+.2f}%"
    sizes = (rounded(found.params), rounded(found.tokens), decimals(found.loss))
    return (f"{found.flops:.3g}", found.kind, *sizes, spread, measured, error)
