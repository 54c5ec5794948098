"""The table of a report that compares models: a row for each measure, a column for each model.

In: the measures of each model by its name, in order. Out: titles and rows of text for the template; a measure that a
model lacks is empty. Measures of parts of a set that is measured as a whole, too, are in a table of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.evaluate.measures import Measure
from lmjax.notation import decimals, exact

WHOLE = "all"


def measures_values(models: Mapping[str, Sequence[Measure]]) -> dict[str, Any]:
    """The values of the macro `measures` in parts.html; empty where nothing was measured."""
    measured = {name: {each.key: each for each in found} for name, found in models.items() if found}
    first = {key: each for found in measured.values() for key, each in reversed(found.items())}
    ordered = list(dict.fromkeys(key for found in measured.values() for key in found))
    parts = [key for key in ordered if key[2] != WHOLE and (key[0], key[1], WHOLE) in first]
    if not measured:
        return {}

    def row(key: tuple[str, str, str]) -> tuple[str, ...]:
        one = first[key]
        title = ", ".join(filter(None, (one.set, one.title, one.of if one.of != WHOLE else "")))
        cells = (_value(found.get(key)) for found in measured.values())
        return title, *cells, exact(one.examples), one.reading

    titles = ("measure", *measured, "examples", "how to read it")
    return {
        "titles": titles,
        "rows": [row(key) for key in ordered if key not in parts],
        "parts": [row(key) for key in parts],
    }


def _value(one: Measure | None) -> str:
    if one is None:
        return ""
    error = "" if math.isnan(one.mean.error) else f" \u00b1 {decimals(one.mean.error)}"
    return f"{decimals(one.mean.value)}{error}"
