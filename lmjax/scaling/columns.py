"""Which columns of a table hold what, and the numbers in their cells.

In: rows as dicts and the columns that the user named. Out: lists of floats, with a line for everything that was guessed
or converted. A cell that is no number is an error with its row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from lmjax.errors import UserError, shortened

# Names in lower case with underscores, in order of preference.
WITH_EMBEDDINGS = (
    *("params", "parameters", "n", "n_params", "num_params", "params_total", "total_params", "model_size"),
    *("params_active_precise", "size"),
)
WITHOUT_EMBEDDINGS = (
    *("parameters_without_embeddings", "params_without_embeddings", "params_no_embed", "params_no_emb", "n_no_emb"),
    *("n_no_embed", "non_embedding_params", "params_non_embedding"),
)
NAMES: Mapping[str, tuple[str, ...]] = {
    "params": (*WITH_EMBEDDINGS, *WITHOUT_EMBEDDINGS),
    "tokens": ("tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "data_size"),
    "flops": ("flops", "c", "training_flops", "training_flop", "train_flops", "total_flops", "compute", "flops_6nd"),
    "loss": ("loss", "final_loss", "validation_loss", "val_loss", "eval_loss", "test_loss", "best_loss"),
    "budget": ("budget", "compute_budget", "flops_budget", "flop_budget"),
    "steps": ("steps", "n_steps", "num_steps", "total_steps", "train_steps", "training_steps", "step"),
}
SIZES = ("params", "tokens", "flops", "budget")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([kKmMbBgGtT]?)")
_HEADER_UNIT = re.compile(r"\(\s*(?:([KMBGT])|(1[eE]\d+))\s*\)\s*$")
_EMPTY = ("", "nan", "null", "none", "na", "n/a")
SMALLEST_SIZE = 1_000.0  # parameters, tokens or FLOPs below which a column without a unit is taken for one in millions

Rows = Sequence[tuple[str, Mapping[str, Any]]]  # each with its place in the file
Say = Callable[[str], None]


def find_column(role: str, given: str | None, known: Sequence[str], where: str) -> str | None:
    """The column that holds `role`: the one that the user named, or one of the common names; None for neither.

    Raises UserError where the named column is not in the table.
    """
    if given is None:
        return named(NAMES.get(role, ()), known)
    if given not in known:
        what = f"--{role}-column {given!r}: {where} has no such column"
        raise UserError(f"{what}; its columns are {listed(known)}; name one of them")
    return given


def named(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the columns `known` that has one of `names`, without regard to case, signs and units."""
    by_name = {plain(name): name for name in reversed(known)}
    return next((by_name[name] for name in names if name in by_name), None)


def other_convention(column: str, known: Sequence[str]) -> str | None:
    """The column that counts parameters without embeddings where `column` counts them, and the other way round."""
    if plain(column) in WITH_EMBEDDINGS:
        return named(WITHOUT_EMBEDDINGS, known)
    return named(WITH_EMBEDDINGS, known) if plain(column) in WITHOUT_EMBEDDINGS else None


def plain(column: str) -> str:
    """The name in lower case, words joined by underscores, without its unit."""
    return re.sub(r"[^a-z0-9]+", "_", _HEADER_UNIT.sub("", column).lower()).strip("_")


def missing_column(role: str, known: Sequence[str], where: str) -> UserError:
    """The error for a table without a column of `role`."""
    what = f"{where}: no column of {role} is known by its name; its columns are {listed(known)}"
    return UserError(f"{what}; name one by --{role}-column")


def numbers(rows: Rows, column: str, role: str, say: Say) -> list[float]:
    """The values of a column; NaN where a cell is empty.

    Sizes may carry a unit, in the cell (70M, 1.4B) or in the header ("Model Size (B)"). Raises UserError for text, and
    for sizes so small that they must be in millions.
    """
    sized = role in SIZES
    header = _HEADER_UNIT.search(column) if sized else None
    scale = int(Decimal(header[2])) if header and header[2] else UNITS[header[1]] if header else 1
    if header:
        say(f"{role}: the header {column!r} names a unit, values are multiplied by {scale:.0e}")
    values, with_unit = [], ""
    for place, row in rows:
        value, unit = number(row.get(column), f"{place}: {column}", units=sized)
        values.append(value * scale)
        with_unit = with_unit or (str(row[column]) if unit else "")
    if with_unit:
        say(f"{role}: units are read as powers of ten (K, M, B or G, T), as in {with_unit!r}")
    largest = max((value for value in values if math.isfinite(value)), default=math.inf)
    if sized and 0 < largest < SMALLEST_SIZE:
        expected = f"expected a number of {'FLOPs' if role == 'budget' else role}, not of millions or billions"
        fix = f"write the unit in the cells (7B) or in the header ({column} (B))"
        raise UserError(f"column {column!r}: its largest value is {largest:g}; {expected}; {fix}")
    return values


def number(cell: Any, where: str, *, units: bool) -> tuple[float, str]:
    """The cell's value and its unit; NaN for an empty cell. Raises UserError for text."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _EMPTY):
        return math.nan, ""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return (float(cell) if abs(cell) < 1e300 else math.inf), ""
    text = str(cell).strip()
    if text.lower().lstrip("+-") in ("inf", "infinity"):
        return math.inf, ""
    match = _NUMBER.fullmatch(text) if len(text) < 400 else None
    if match is None or isinstance(cell, bool) or (match[2] and not units):
        expected = "a number, or one with a unit K, M, B, G or T" if units else "a number"
        raise UserError(f"{where} = {shortened(cell, 60)}: expected {expected}, without separators; fix the row")
    return float(Decimal(match[1]) * UNITS[match[2].upper()]), match[2]


def listed(names: Sequence[str], most: int = 40) -> str:
    """Names as a message lists them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name, 60) for name in names[:most]) + more
