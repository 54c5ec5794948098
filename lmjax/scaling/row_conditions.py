"""Conditions on the rows of a table, such as dataset=comma, outlier!=True or tokens<1e11."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from lmjax.errors import UserError
from lmjax.scaling.columns import Rows, listed, number

_CONDITION = re.compile(r"(.+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    **{"=": operator.eq, "!=": operator.ne},
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
}


def fitting(option: str, text: str, rows: Rows, path: object) -> list[bool]:
    """Whether each row fits the condition `text` of the option.

    Numbers, which may carry a unit (1.4B), compare as such; other cells as text without regard to case, and only by =
    and !=. Raises UserError where no row fits.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(f"{option} {text!r}: expected COLUMN=VALUE, or one of != < <= > >=; for example dataset=comma")
    column, sign, value = match.groups()
    known = list(dict.fromkeys(name for _, row in rows for name in row))
    if column not in known:
        raise UserError(f"{option} {text!r}: {path} has no column {column!r}; its columns are {listed(known)}")
    out = [_fits(row.get(column), sign, value) for _, row in rows]
    if not any(out):
        values = list(dict.fromkeys(str(row.get(column)) for _, row in rows))
        raise UserError(f"{option} {text!r}: no row fits; the column holds {listed(values, 10)}; name one of these")
    return out


def _fits(cell: Any, sign: str, value: str) -> bool:
    try:
        left, right = (number(each, "", units=True)[0] for each in (cell, value))
    except UserError:
        if sign not in ("=", "!="):
            return False
        return _COMPARE[sign](str(cell).strip().lower(), value.strip().lower())
    return _COMPARE[sign](left, right)
