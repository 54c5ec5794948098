"""Sets that ask which of several options follows a context: SWAG, HellaSwag, CODAH and COPA."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.data.documents import BadRecordError
from lmjax.data.labelled import BadExampleError, Choices, Reader
from lmjax.data.labelled_sets import reading
from lmjax.data.open_files import utf8_of
from lmjax.data.record_files import rows, tab_cells
from lmjax.errors import shortened
from lmjax.settings.labelled import LabelledSettings


def read_swag(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """Zellers et al. 2018: their own CSV (startphrase, ending0 to ending3), or JSON lines (startphrase, choices)."""
    return reading.examples(rows(path), _swag)


def _swag(record: dict[str, Any], where: str) -> Choices:
    context = reading.text(record, "startphrase", where)
    if "choices" in record:
        options, right = reading.texts(record, "choices", where), record.get("answer")
    else:
        options = tuple(reading.text(record, f"ending{number}", where) for number in range(4))
        right = record.get("label")
    return Choices(context, options, _right(right, options, where), where)


def read_hellaswag(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """Zellers et al. 2019: JSON lines of ctx, endings and label."""
    return reading.examples(rows(path), _hellaswag)


def _hellaswag(record: dict[str, Any], where: str) -> Choices:
    options = reading.texts(record, "endings", where)
    return Choices(reading.text(record, "ctx", where), options, _right(record.get("label"), options, where), where)


def read_options(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """Records of a context, a list of options and the label, the number of the right one from 0, if any."""
    return reading.examples(rows(path), _options)


def _options(record: dict[str, Any], where: str) -> Choices:
    context, options = reading.text(record, "context", where), reading.texts(record, "options", where)
    return Choices(context, options, _right(record.get("label"), options, where), where)


def read_codah(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """Chen et al. 2019: TSV without a header: category, context, four options, the number of the right one."""
    return reading.examples(tab_cells(utf8_of(path), path), _codah)


def _codah(cells: list[str], where: str) -> Choices:
    if len(cells) != 7:
        raise BadExampleError(where, "expected 7 cells: category, context, four options, label", f"{len(cells)} cells")
    options = tuple(cells[2:6])
    return Choices(cells[1], options, _right(cells[6], options, where), where)


class CopaItem(NamedTuple):
    """An item of COPA's XML: which alternative, counted from 1, is the cause or the effect of the premise."""

    premise: str
    asks_for: str
    alternatives: tuple[str, str]
    right: str


_ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa_items(path: Path) -> Iterator[tuple[str, CopaItem]]:
    """The items of COPA's XML with their places (Roemmele et al. 2011). Raises BadRecordError where it is no XML."""
    try:
        items = ElementTree.fromstring(utf8_of(path)[:]).iter("item")
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise BadRecordError(f"{path}: expected XML: {error}; take the published file") from error
    for number, item in enumerate(items, start=1):
        premise, one, two = ((item.findtext(name) or "").strip() for name in ("p", "a1", "a2"))
        right = item.get("most-plausible-alternative", "")
        yield f"{path}: item {item.get('id', number)}", CopaItem(premise, item.get("asks-for", ""), (one, two), right)


def read_copa(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """COPA: the context is the premise and the question, "What was the cause of this?" or "... as a result?"."""
    return reading.examples(copa_items(path), _copa)


def _copa(item: CopaItem, where: str) -> Choices:
    if item.asks_for not in _ASKED:
        raise BadExampleError(where, "it asks for neither cause nor effect", shortened(item.asks_for, 60))
    right = reading.place(item.right, 2, where, first=1) if item.right else None
    return Choices(f"{item.premise} {_ASKED[item.asks_for]}", item.alternatives, right, where)


def _right(value: Any, options: tuple[str, ...], where: str) -> int | None:
    """The number of the right option; None where the file does not say."""
    return None if value is None or value == "" else reading.place(value, len(options), where)


FORMS: dict[str, Reader] = {
    "options": read_options,
    "swag": read_swag,
    "hellaswag": read_hellaswag,
    "codah": read_codah,
    "copa": read_copa,
}
