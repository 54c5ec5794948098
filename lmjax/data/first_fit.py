"""The plan of first-fit packing: which documents, or pieces of long ones, share a row.

First-fit decreasing puts the pieces, longest first, each into the first row that has room (Johnson et al. 1974).
Pieces of one length are interchangeable, so that rows with the same room are processed together: time grows with the
number of distinct lengths, and a million documents take a fraction of a second. The plan depends only on the lengths.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.data.token_strings import within


class Plan(NamedTuple):
    """Row r holds the pieces first_piece[r] .. first_piece[r + 1] - 1, in the order of the corpus."""

    first_piece: np.ndarray  # int64 [rows + 1]
    starts: np.ndarray  # int64 [pieces]: the position of a piece's first token
    lengths: np.ndarray  # int32 [pieces]: the inputs of a piece; its last target is the next token


def plan_rows(bounds: np.ndarray, row_length: int) -> Plan:
    """The plan for documents with these bounds, int64 [documents + 1] in tokens, and rows of `row_length` inputs.

    A document of n tokens has n - 1 inputs, since its last token is only a target.
    """
    starts, lengths = _pieces(bounds, row_length)
    order = np.argsort(-lengths, kind="stable")
    by_length, counts = np.unique(-lengths, return_counts=True)
    rows = _Rows(row_length)
    row_of = np.empty(len(lengths), np.int64)
    done = 0
    for length, count in zip((-by_length).tolist(), counts.tolist(), strict=True):
        row_of[order[done : done + count]] = rows.place(length, count)
        done += count
    by_row = np.argsort(row_of, kind="stable")
    first_piece = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows.used))])
    return Plan(first_piece, starts[by_row], lengths[by_row].astype(np.int32))


def _pieces(bounds: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """First token and number of inputs of each piece; a document longer than a row has several pieces."""
    inputs = np.maximum(np.diff(bounds) - 1, 0)
    pieces = -(-inputs // row_length)
    document = np.repeat(np.arange(len(inputs)), pieces)
    offset = within(pieces) * row_length
    return bounds[:-1][document] + offset, np.minimum(inputs[document] - offset, row_length)


class _Rows:
    """Rows in order, as runs of adjacent rows with the same room. Full rows are dropped."""

    def __init__(self, row_length: int) -> None:
        self.row_length = row_length
        self.used = 0
        self._runs = np.zeros((3, 0), np.int64)  # first row, number of rows, room

    def place(self, length: int, count: int) -> np.ndarray:
        """Puts `count` pieces into the first rows with room; returns their rows, in order, int64 [count]."""
        first, rows, room = self._runs
        fits = room // length
        upto = np.cumsum(fits * rows)
        full = int(np.searchsorted(upto, count, side="right"))  # all runs before this one become full
        placed = int(upto[full - 1]) if full else 0
        out = [_rows_of(first[:full], rows[:full], fits[:full])]
        room[:full] -= fits[:full] * length
        rest = self._runs[:, full:]
        left = count - placed
        if left and rest.shape[1]:
            run_first, run_rows, run_room = rest[:, 0].tolist()
            split, taken = _fill(run_first, run_rows, run_room, length, left)
            out.append(taken)
            rest = np.concatenate([split, rest[:, 1:]], axis=1)
        elif left:
            opened = -(-left // (self.row_length // length))
            rest, taken = _fill(self.used, opened, self.row_length, length, left)
            out.append(taken)
            self.used += opened
        runs = np.concatenate([self._runs[:, :full], rest], axis=1)
        self._runs = runs[:, runs[2] > 0]
        return np.concatenate(out)


def _fill(first: int, rows: int, room: int, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts `count` pieces into a run with room for them; returns the resulting runs, and the rows of the pieces."""
    fits = room // length
    full, some = divmod(count, fits)
    runs = [(first, full, room - fits * length), (first + full, 1, room - some * length)]
    untouched = full + (some > 0)
    runs = [runs[0]] * (full > 0) + [runs[1]] * (some > 0)
    runs += [(first + untouched, rows - untouched, room)] * (rows > untouched)
    taken = first + np.arange(count) // fits
    return np.array(runs, np.int64).T, taken


def _rows_of(first: np.ndarray, rows: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Each row of the runs, repeated by the number of pieces that fit into it."""
    return np.repeat(np.repeat(first, rows) + within(rows), np.repeat(fits, rows))
