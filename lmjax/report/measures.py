"""The table of a report that compares models: a row for each measure, a column for each model.

In: the measures of each model by its name, in order. Out: titles and rows of text for the template; a measure that a
model lacks is empty. Measures of parts of a set that is measured as a whole, too, are in a table of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmjax.evaluate.measures import Measure
from lmjax.notation import decimals, exact

WHOLE = "all"
PLACES = 3
Key = tuple[str, str, str]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # titles and rows


def measures_values(models: Mapping[str, Sequence[Measure]]) -> dict[str, Any]:
    """The values of the macro `measures` in parts.html; empty where nothing was measured."""
    measured = {name: {each.key: each for each in found} for name, found in models.items() if found}
    first = {key: each for found in measured.values() for key, each in reversed(found.items())}
    ordered = list(dict.fromkeys(key for found in measured.values() for key in found))
    parts = [key for key in ordered if key[2] != WHOLE and (key[0], key[1], WHOLE) in first]

    def table(keys: Sequence[Key]) -> Table:
        used = {name: found for name, found in measured.items() if any(key in found for key in keys)}
        return ("measure", *used, "examples", "how to read it"), [_row(key, first[key], used.values()) for key in keys]

    return {"whole": table([key for key in ordered if key not in parts]), "parts": table(parts)} if first else {}


def _row(key: Key, one: Measure, models: Iterable[Mapping[Key, Measure]]) -> tuple[str, ...]:
    title = ", ".join(filter(None, (one.set, one.title, one.of if one.of != WHOLE else "")))
    return title, *(_value(found.get(key)) for found in models), exact(one.examples), one.reading


def _value(one: Measure | None) -> str:
    if one is None:
        return ""
    error = "" if math.isnan(one.mean.error) else f"\u00a0\u00b1\u00a0{decimals(one.mean.error, PLACES)}"
    return f"{decimals(one.mean.value, PLACES)}{error}"  # with blanks at which no line breaks
