"""The report of a run or a pipeline: `report.html`, one file that needs nothing else, and PNG files of its charts.

In: a workdir, finished or not. Out: a page that opens from disk without a network request, in light and dark, on a
phone too. The page is `run.html` or `pipeline.html` with the values that sections.py or pipeline.py computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.fields import require_local
from lmjax.files import write_whole
from lmjax.report.charts import DARK, LIGHT, write_png
from lmjax.report.metrics import charts_of
from lmjax.report.pipeline import divergence_charts, pipeline_values
from lmjax.report.records import RunRecord, read_pipeline, read_run
from lmjax.report.sections import run_values
from lmjax.report.template import render
from lmjax.run_files import is_pipeline
from lmjax.version import __version__

REPORT_FILE = "report.html"


def write_report(workdir: Path | str, *, stages: bool = True) -> Path:
    """Writes `report.html` and the PNG charts of a run, or of a pipeline, into its workdir; returns the report's path.

    Of a pipeline, the reports of its stages are written too, unless `stages` is False. The same record gives the same
    bytes. Raises UserError for a folder that is no workdir, for a damaged file in it, and where it cannot be written.
    """
    require_local("workdir", workdir)
    folder = Path(workdir)
    if is_pipeline(folder):
        pipeline = read_pipeline(folder)
        for run in pipeline.begun if stages else ():
            write_report(run.folder)
        charts, last_step, runs = divergence_charts(pipeline), 1, pipeline.begun
        template, values = "pipeline.html", partial(pipeline_values, pipeline, charts)
    else:
        run = read_run(folder)
        charts, last_step, runs = charts_of(run), run.reached, [run]
        template, values = "run.html", partial(run_values, run, charts)
    try:
        for chart in charts:
            write_png(chart, folder, last_step)
        write_whole(folder / REPORT_FILE, render(template, values() | _frame(runs)))
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written: {error.strerror}; make room or allow writing there"
        ) from error
    return folder / REPORT_FILE


def _frame(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The values of base.html that every page has: colours, and what the footer says."""
    recorded = max((run.recorded for run in runs if run.recorded), default=None)
    return {
        "light": LIGHT,
        "dark": DARK,
        "version": __version__,
        "source": "run" if len(runs) == 1 else "pipeline",
        "recorded": f"{recorded:%Y-%m-%d %H:%M}" if recorded else "",
    }
