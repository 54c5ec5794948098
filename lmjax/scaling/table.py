"""A table of finished runs: parameters, tokens, FLOPs and losses, from CSV, JSON, JSON lines or Parquet.

In: a file and which columns hold what. Out: a `Table` of float64 arrays, one row a run, and a note for everything that
was guessed, computed, converted or left out. Rows that cannot be used are errors that name them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import suffix_of
from lmjax.data.record_files import RECORD_SUFFIXES, rows
from lmjax.errors import UserError
from lmjax.scaling.columns import (
    SIZES,
    WITHOUT_EMBEDDINGS,
    Rows,
    find_column,
    missing_column,
    numbers,
    other_convention,
    plain,
)
from lmjax.scaling.row_conditions import fitting
from lmjax.scaling.sweep_table import DONE

ROLES = ("params", "tokens", "flops", "loss", "budget", "steps", "accuracy")
EXTRA = ("steps", "accuracy", "params_other", "held_out")
_NEAR, _WIDEST = 0.1, 0.25  # logs of neighbours and of a whole group of values that count as about equal


@dataclass(frozen=True)
class Selection:
    """Which columns and rows of a file are used. A column that is None is found by its name; accuracy is not."""

    params: str | None = None
    tokens: str | None = None
    flops: str | None = None
    loss: str | None = None
    budget: str | None = None
    steps: str | None = None
    accuracy: str | None = None
    where: tuple[str, ...] = ()  # conditions such as dataset=comma, outlier!=True, tokens<1e11
    hold_out: tuple[str, ...] = ()  # rows that fit all of these are predicted, not fitted
    drop_highest_loss: int = 0
    duplicates: str = "all"  # rows of one (N, D): "all", or the "best"
    skip_bad: bool = False  # leave rows out whose loss or sizes are not finite and above 0
    perplexity: bool = False  # the loss column holds exp(loss)


@dataclass(frozen=True)
class Table:
    """Runs [R]: parameters, tokens, FLOPs and loss, and the budget of the IsoFLOP profile that a run belongs to.

    `extra` has what some tables have: steps, accuracy, params_other (parameters in the other convention of embeddings),
    NaN where unknown, and held_out (booleans). `columns` are those that were read, `places` the rows' in the file.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    budget: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: np.ndarray, note: str = "") -> Table:
        """The rows of `index`, which is a mask or numbers."""
        arrays = {name: getattr(self, name)[index] for name in ("params", "tokens", "flops", "loss", "budget")}
        extra = {name: values[index] for name, values in self.extra.items()}
        places = tuple(np.array(self.places, object)[index])
        notes = (*self.notes, note) if note else self.notes
        return dataclasses.replace(self, **arrays, extra=extra, places=places, notes=notes)

    def split(self) -> tuple[Table, Table | None]:
        """The rows to fit, and those to predict; None where none are held out."""
        if "held_out" not in self.extra:
            return self, None
        held = self.extra["held_out"].astype(bool)
        return self.take(~held, f"{held.sum()} rows are held out and predicted"), self.take(held)

    @property
    def convention(self) -> str:
        """What N and C count."""
        column = self.columns.get("params")
        which = {True: ", without embeddings", False: ", with embeddings"}
        stated = "params_other" in self.columns or plain(column or "") in WITHOUT_EMBEDDINGS
        words = f"N is the column {column!r}" if column else "N as given"
        return words + (which[plain(column or "") in WITHOUT_EMBEDDINGS] if stated else "") + "; C = 6 N D"


def make_table(params: Any, tokens: Any, loss: Any, steps: Any = None) -> Table:
    """A table of arrays [R], with C = 6 N D and budgets of runs with about the same FLOPs."""
    N, D, L = (np.asarray(values, np.float64) for values in (params, tokens, loss))
    places = tuple(f"row {number}" for number in range(1, len(L) + 1))
    extra = {} if steps is None else {"steps": np.asarray(steps, np.float64)}
    return Table(N, D, 6 * N * D, L, grouped(6 * N * D), extra, places)


def read_table(path: Path, selection: Selection = Selection()) -> Table:
    """The runs of a file. Raises UserError naming the file and row, column or option."""
    notes: list[str] = []
    found = _finished(_records(path, notes), path, notes)
    for text in selection.where:
        fits = fitting("--where", text, found, path)
        notes.append(f"--where {text}: {sum(fits)} of {len(found)} rows")
        found = [row for row, kept in zip(found, fits, strict=True) if kept]
    held_out = [fitting("--hold-out", text, found, path) for text in selection.hold_out]
    known = list(dict.fromkeys(name for _, row in found for name in row))
    columns = {role: find_column(role, getattr(selection, role), known, str(path)) for role in ROLES}
    for role in ("params", "loss"):
        if columns[role] is None:
            raise missing_column(role, known, str(path))
    if columns["tokens"] is None and columns["flops"] is None and columns["budget"] is None:
        raise missing_column("tokens", known, f"{path} (and no column of flops)")
    guessed = [f"{role} {columns[role]!r}" for role in ROLES if columns[role] and getattr(selection, role) is None]
    if guessed:
        notes.append(f"columns by their names: {', '.join(guessed)}; --params-column and the like name others")
    columns["params_other"] = other_convention(str(columns["params"]), known)
    used = {role: column for role, column in columns.items() if column is not None}
    values = {role: np.array(numbers(found, name, role, notes.append), np.float64) for role, name in used.items()}
    if held_out:
        values["held_out"] = np.all(held_out, axis=0)
    if selection.perplexity:
        notes.append(f"loss is the log of the column {used['loss']!r}")
        with np.errstate(divide="ignore", invalid="ignore"):
            values["loss"] = np.log(values["loss"])
    good = _good(values, used, [place for place, _ in found], selection, notes)
    values = {role: array[good] for role, array in values.items()}
    places = [_short(place, path) for (place, _), kept in zip(found, good, strict=True) if kept]
    return _reduced(_table(values, used, places, notes), selection)


def grouped(values_R: np.ndarray) -> np.ndarray:
    """For each value, the geometric mean of the group of about equal ones that it belongs to: of FLOPs, the budget."""
    logs = np.log(values_R)
    groups: list[list[int]] = []
    for index in np.argsort(values_R).tolist():
        group = groups[-1] if groups else []
        if group and logs[index] - logs[group[-1]] <= _NEAR and logs[index] - logs[group[0]] <= _WIDEST:
            group.append(index)
        else:
            groups.append([index])
    out_R = np.empty_like(values_R)
    for group in groups:
        out_R[group] = np.exp(logs[group].mean())
    return out_R


def _records(path: Path, notes: list[str]) -> Rows:
    if path.is_dir() or (path.exists() and suffix_of(path) not in RECORD_SUFFIXES):
        raise UserError(f"{path}: expected a table that ends in {', '.join(RECORD_SUFFIXES)}; name or convert one")
    try:
        read = list(rows(path))
    except BadRecordError as error:
        raise UserError(str(error)) from None
    if len(read) > 1 and isinstance(read[-1][1], BadRecordError) and _is_torn(path):
        notes.append(f"{read[-1][0]}: the last line is torn and left out")
        read.pop()
    for place, row in read:
        if isinstance(row, BadRecordError):
            raise UserError(f"{place}: {row}; fix the row, or delete it")
    if not read:
        raise UserError(f"{path}: it holds no row; expected one row a run")
    return read  # type: ignore[return-value]


def _finished(found: Rows, path: Path, notes: list[str]) -> Rows:
    """Of a sweep's own rows, which have a name and a status: the last of each name, if its run is done."""
    if not all("name" in row and "status" in row for _, row in found):
        return found
    last = {str(row["name"]): (place, row) for place, row in found}
    done = [(place, row) for place, row in last.values() if row["status"] == DONE]
    if len(last) < len(found):
        notes.append(f"rows that a later one of the same name replaces: {len(found) - len(last)}")
    if len(done) < len(last):
        others = [f"{name} ({row['status']})" for name, (_, row) in last.items() if row["status"] != DONE]
        notes.append(f"not done and left out, {len(others)} of {len(last)}: {', '.join(others[:5])}")
    if not done:
        raise UserError(f"{path}: no run of the sweep is done; run the sweep's command again")
    return done


def _is_torn(path: Path) -> bool:
    """Whether a file of lines ends without a line feed, as where its writer was killed."""
    return suffix_of(path) == ".jsonl" and not path.read_bytes().endswith(b"\n")


def _good(
    values: Mapping[str, np.ndarray],
    columns: Mapping[str, str],
    places: Sequence[str],
    selection: Selection,
    notes: list[str],
) -> np.ndarray:
    """Which rows have a finite loss and sizes above 0. Raises UserError for others, unless they are to be skipped."""
    good = np.ones(len(places), bool)
    wrong = []
    for role in ("loss", *SIZES):
        if role in values:
            bad = ~(np.isfinite(values[role]) & (values[role] > 0))
            if role == "budget" and ("tokens" in values or "flops" in values):
                bad &= ~np.isnan(values[role])  # a run of no profile has no budget
            wrong += [
                f"{places[row]}: {columns[role]} = {values[role][row]:g}" for row in np.flatnonzero(bad & good).tolist()
            ]
            good &= ~bad
    count = f"{np.sum(~good)} of {len(good)} rows have no finite loss and sizes above 0"
    if not good.any():
        raise UserError(f"{wrong[0]}: {count}; name other columns, or fix the table")
    if wrong and not selection.skip_bad:
        raise UserError(f"{wrong[0]}: {count}; fix them, or leave them out by --skip-bad")
    if wrong:
        notes.append(f"{count} and are left out: {'; '.join(wrong[:3])}")
    return good


def _table(
    values: Mapping[str, np.ndarray], columns: Mapping[str, str], places: Sequence[str], notes: list[str]
) -> Table:
    """Tokens, FLOPs and budgets are computed where they have no column."""
    N, D, C = values["params"], values.get("tokens"), values.get("flops")
    if D is None:
        role = "flops" if C is not None else "budget"
        notes.append(f"tokens are computed: D = C / 6 N, with C from the column {columns[role]!r}")
        D = values[role] / (6 * N)
    C = 6 * N * D if C is None else C
    budget = values.get("budget", np.full_like(C, np.nan))
    budget = np.where(np.isnan(budget), grouped(C), budget)
    extra = {role: values[role] for role in EXTRA if role in values}
    return Table(N, D, C, values["loss"], budget, extra, tuple(places), columns, tuple(notes))


def _short(place: str, path: Path) -> str:
    """A row's place without its file."""
    rest = place.removeprefix(f"{path}:").strip()
    return f"{'row' if suffix_of(path) == '.parquet' else 'line'} {rest}" if rest.isdigit() else rest


def _reduced(table: Table, selection: Selection) -> Table:
    drop = selection.drop_highest_loss
    if not 0 <= drop < len(table):
        raise UserError(f"--drop-highest-loss {drop}: expected 0 to {len(table) - 1}, the table has {len(table)} rows")
    if drop:
        order = np.argsort(table.loss, kind="stable")
        lost = ", ".join(f"{value:.4g}" for value in table.loss[order[-drop:][:5]])
        table = table.take(np.sort(order[:-drop]), f"the {drop} highest losses are left out: {lost}")
    group = repeats(table)
    repeated = len(table) - len(np.unique(group))
    what = f"{repeated} row{'s repeat' if repeated > 1 else ' repeats'} the (N, D) of another"
    if not repeated:
        return table
    if selection.duplicates == "all":
        note = f"{what}: all are used (--duplicates best takes one of each)"
        return dataclasses.replace(table, notes=(*table.notes, note))
    best = np.lexsort((table.loss, group))
    first = np.concatenate([[True], np.diff(group[best]) > 0])
    return table.take(np.sort(best[first]), f"{what}: the best of each is used")


def repeats(table: Table) -> np.ndarray:
    """A number [R] that rows of one (N, D) share."""
    sizes = np.stack([table.params, table.tokens], axis=1)
    return np.unique(sizes, axis=0, return_inverse=True)[1].ravel()


def described(table: Table) -> str:
    """The table as text: rows, the ranges of its columns, and a line for each note."""
    ranges = (("N", table.params), ("D", table.tokens), ("C", table.flops), ("loss", table.loss))
    numbers = ", ".join(f"{name} {v.min():.4g} to {v.max():.4g}" for name, v in ranges)
    return "\n".join([f"{len(table)} runs: {numbers}", *(f"  {note}" for note in table.notes)])
