"""The building blocks of a report's page: sections, lists of names and values, tiles, tables and figures.

In: text, numbers already written out, and drawings. Out: `Html`. Nothing here knows what a run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.notation import decimals, exact, rounded
from lmjax.report.charts import COMPACT, NARROW, WIDE, Chart, Series, svg
from lmjax.report.markup import Html, element, joined

Rows = list[tuple[str, object]]  # names and values; a value may be markup


def section(title: str, *content: object) -> Html:
    """A part of the page under a heading that can be linked to."""
    anchor = title.lower().replace(" ", "-")
    return element("section", element("h2", title, id=anchor), *content, aria_labelledby=anchor)


def details(summary: str, *content: object) -> Html:
    """What is shown on request."""
    return element("details", element("summary", summary), *content)


def tiles(values: Sequence[tuple[str, str, str]]) -> Html:
    """Large numbers: name, value and unit of each."""
    shown = (
        element("div", element("dt", name), element("dd", value, " ", element("small", unit)))
        for name, value, unit in values
    )
    return element("dl", *shown, cls="tiles")


def groups(lists: Sequence[tuple[str, Rows]]) -> Html:
    """Lists of names and values, each under a heading where it has one; an empty list is left out."""
    made = []
    for title, rows in lists:
        pairs = (element("div", element("dt", name), element("dd", value)) for name, value in rows)
        heading = element("h3", title) if title else None
        made += [element("div", heading, element("dl", *pairs), cls="group")] if rows else []
    return element("div", *made, cls="groups")


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], cls: str | None = None) -> Html:
    """A table whose first column names its rows; it scrolls where the page is narrower."""
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    made = element("table", element("thead", head), element("tbody", *body), cls=cls)
    return element("div", made, cls="scroll")


def large_figure(chart: Chart, last_step: int) -> Html:
    """A chart as wide as the page, with a drawing of its own for phones."""
    return _figure(chart, svg(chart, WIDE, last_step, "wide"), svg(chart, NARROW, last_step, "narrow"))


def small_figures(charts: Sequence[Chart], last_step: int) -> Html:
    """Charts side by side, as many as fit."""
    return element("div", *(_figure(chart, svg(chart, COMPACT, last_step, "small")) for chart in charts), cls="charts")


def half_figures(charts: Sequence[Chart], last_step: int) -> Html:
    """Charts two to a row, where there is room."""
    drawn = (_figure(chart, svg(chart, NARROW, last_step, "small")) for chart in charts)
    return element("div", *drawn, cls="charts halves")


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def log_lines(number: int) -> str:
    return "1 line of the log" if number == 1 else f"{exact(number)} lines of the log"


def _figure(chart: Chart, *drawings: Html) -> Html:
    """Drawings under a title and, for each curve, its key and newest value."""
    keys = []
    for series in chart.series:
        name = joined((element("i", cls=series.role), series.label, " ")) if len(chart.series) > 1 else None
        keys.append(element("span", name, element("b", _newest(series)) if series.told else None, cls="key"))
    if any(len(series.broken) for series in chart.series):
        keys.append(element("span", element("b", "\u00d7", cls="alarm"), " not finite", cls="key"))
    return element("figure", element("figcaption", element("h3", chart.title), *keys), *drawings, cls="plot")


def _newest(series: Series) -> str:
    value = float(series.values[-1])
    return decimals(value) if series.role == "second" or 0.1 <= abs(value) < 100 else rounded(value)
