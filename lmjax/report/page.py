"""The report of a run or a pipeline: `report.html`, one file that needs nothing else, and PNG files of its charts.

In: a workdir, finished or not. Out: a page that opens from disk without a network request, in light and dark, on a
phone too. The page is `template.html` around the sections of `page` or `pipeline_page`, each a function of the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

from lmjax.errors import UserError
from lmjax.fields import require_local
from lmjax.files import write_whole
from lmjax.report import pipeline, sections
from lmjax.report.charts import DARK, LIGHT, Chart, write_png
from lmjax.report.markup import Html, element, escaped, joined
from lmjax.report.metrics import charts_of
from lmjax.report.records import PipelineRecord, RunRecord, read_pipeline, read_run
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
        record = read_pipeline(folder)
        for run in record.begun if stages else ():
            write_report(run.folder)
        charts = pipeline.divergence_charts(record)
        return _written(folder, charts, lambda: pipeline_page(record, charts), 1)
    run = read_run(folder)
    charts = charts_of(run)
    return _written(folder, charts, lambda: page(run, charts), run.reached)


def page(run: RunRecord, charts: list[Chart]) -> str:
    """The whole page of a run."""
    return _page(
        f"{run.recipe.name}, lmjax {run.stage}",
        sections.header(run),
        (
            sections.warnings(run),
            sections.highlights(run),
            sections.curves(run, charts),
            sections.samples(run),
            sections.numbers(run),
            sections.recipe(run),
            sections.environment(run),
        ),
        [run],
    )


def pipeline_page(record: PipelineRecord, charts: list[Chart]) -> str:
    """The whole page of a pipeline; `charts` are those over divergence."""
    return _page(
        f"{record.folder.resolve().name}, lmjax pipeline",
        pipeline.header(record),
        (
            pipeline.warnings(record),
            pipeline.stages(record),
            pipeline.divergence(charts),
            pipeline.best_of(record),
            pipeline.samples(record),
            pipeline.curves(record),
            pipeline.environment(record),
        ),
        record.begun,
    )


def _page(title: str, header: Html, parts: Iterable[Html | None], runs: Sequence[RunRecord]) -> str:
    template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escaped(title),
        light=_declarations(LIGHT),
        dark=_declarations(DARK),
        header=header,
        content=joined(parts),
        footer=_footer(runs),
    )


def _written(folder: Path, charts: Sequence[Chart], made: Callable[[], str], last_step: int) -> Path:
    path = folder / REPORT_FILE
    try:
        for chart in charts:
            write_png(chart, folder, last_step)
        write_whole(path, made())
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written: {error.strerror}; make room or allow writing there"
        ) from error
    return path


def _declarations(palette: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in palette.items())


def _footer(runs: Sequence[RunRecord]) -> Html:
    recorded = max((run.recorded for run in runs if run.recorded), default=None)
    written = f" The last line of the log is of {recorded:%Y-%m-%d %H:%M} UTC." if recorded else ""
    whose = "run" if len(runs) == 1 else "pipeline"
    return element("p", f"Written by lmjax {__version__} from the {whose}\u2019s recipe and log.{written}")
