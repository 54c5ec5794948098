"""The methods by name, each a function from a table to results, and the notes that compare their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from lmjax.errors import UserError
from lmjax.scaling.approach3 import approach3
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.envelope import approach1
from lmjax.scaling.isoflop import approach2
from lmjax.scaling.kaplan import kaplan
from lmjax.scaling.result import Result
from lmjax.scaling.table import Table

METHODS: Mapping[str, Callable[[Table, FitOptions], list[Result]]] = {
    "chinchilla": approach3,
    "isoflop": approach2,
    "envelope": approach1,
    "kaplan": kaplan,
}
ALL = "all"
AGREE = 0.01  # between exponents
DISAGREE = (
    "approaches 2 and 3 give a = {:.3f} and {:.3f}: a parabola takes a profile for symmetric about its minimum, which "
    "E + A/N^alpha + B/D^beta is not, so approach 2 errs where grids are wide or off centre; approach 3 errs where the "
    "runs do not follow its formula"
)


def fit_table(table: Table, method: str, options: FitOptions) -> tuple[list[Result], list[str]]:
    """The results of one method, or of "all" that the table allows, and why the others do not fit.

    Raises UserError where none does.
    """
    if method != ALL:
        return METHODS[method](table, options), []
    results: list[Result] = []
    failed = []
    for name, call in METHODS.items():
        try:
            results += call(table, options)
        except UserError as error:
            failed.append(f"{name}: {error}")
    if not results:
        raise UserError("no method fits this table: " + "; ".join(failed))
    return _compared(results), failed


def _compared(results: list[Result]) -> list[Result]:
    """The results, with a note where approaches 2 and 3 disagree."""
    by_method = {result.method.partition(" ")[0]: result for result in results}
    second, third = by_method.get("isoflop"), by_method.get("chinchilla")
    if second is None or third is None or abs(second.values["a"] - third.values["a"]) < AGREE:
        return results
    note = DISAGREE.format(second.values["a"], third.values["a"])
    noted = dataclasses.replace(second, notes=(*second.notes, note))
    return [noted if result is second else result for result in results]
