"""The report of a run: `report.html`, one file that needs nothing else, and its charts as PNG files beside it.

In: a workdir, finished or not. Out: a page that opens from disk without a network request, in light and dark, on a
phone too. The page is `template.html` around the sections of `page`, each a function of the run's record.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

import lmjax
from lmjax.errors import UserError
from lmjax.report import sections
from lmjax.report.charts import DARK, LIGHT, Chart, write_png
from lmjax.report.markup import Html, element, escaped, joined
from lmjax.report.reading import RunRecord, read_run

REPORT_FILE = "report.html"


def write_report(workdir: Path | str) -> Path:
    """Writes `report.html` and the PNG charts of a run into its workdir; returns the report's path.

    The same record gives the same bytes. Raises UserError for a folder that is no workdir, for a damaged file in it,
    and where it cannot be written.
    """
    folder = Path(workdir)
    run = read_run(folder)
    charts = sections.charts_of(run)
    path = folder / REPORT_FILE
    partial = path.with_name(path.name + ".partial")
    try:
        for chart in charts:
            write_png(chart, folder, run.reached)
        partial.write_text(page(run, charts), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written: {error.strerror}; make room or allow writing there"
        ) from error
    return path


def page(run: RunRecord, charts: list[Chart]) -> str:
    """The whole page."""
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escaped(f"{run.recipe.name}, lmjax {run.stage}"),
        light=_declarations(LIGHT),
        dark=_declarations(DARK),
        header=sections.header(run),
        content=joined(
            (
                sections.warnings(run),
                sections.highlights(run),
                sections.curves(run, charts),
                sections.samples(run),
                sections.numbers(run),
                sections.recipe(run),
                sections.environment(run),
            )
        ),
        footer=_footer(run),
    )


def _declarations(palette: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in palette.items())


def _footer(run: RunRecord) -> Html:
    written = f" The last line of the log is of {run.recorded:%Y-%m-%d %H:%M} UTC." if run.recorded else ""
    return element("p", f"Written by lmjax {lmjax.__version__} from the run\u2019s recipe and log.{written}")
