"""Sets of one or two texts with a class or a score: GLUE's own files, their published sources, FewCLUE, and records.

In: a file. Out: `Labelled` examples. A file without its column of labels, such as a test part, gives examples without
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.data.labelled import BadExampleError, Labelled, Reader
from lmjax.data.labelled_sets import reading
from lmjax.data.open_files import suffix_of, utf8_of
from lmjax.data.record_files import Cells, Row, csv_cells, rows, tab_cells, tsv_rows
from lmjax.errors import require, shortened
from lmjax.settings.labelled import LabelledSettings

# Columns of texts and of labels that records are searched for where the settings name none.
KNOWN_TEXTS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("text_a", "text_b"), ("sentence",), ("text",), ("content",), ("review",)),
)
KNOWN_LABELS = ("label", "gold_label", "score")
TWO, THREE = ("entailment", "not_entailment"), ("contradiction", "entailment", "neutral")
BINARY = ("0", "1")

TOPICS = {  # the labels of tnews and their names in Chinese, as in its tnews_label_index2en2zh.json
    **{"100": "故事", "101": "文化", "102": "娱乐", "103": "体育", "104": "财经", "106": "房产", "107": "汽车"},
    **{"108": "教育", "109": "科技", "110": "军事", "112": "旅游", "113": "国际", "114": "股票", "115": "农业"},
    "116": "电竞",
}


@dataclass(frozen=True)
class Columns:
    """The columns of the texts and of the label, by name; the known labels, () for any; or the bounds of a score."""

    texts: tuple[str, ...]
    label: str
    known: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None

    def example(self, record: dict[str, Any], where: str) -> Labelled:
        texts = tuple(reading.text(record, name, where) for name in self.texts)
        return Labelled(texts, self._label(record, where), where)

    def _label(self, record: dict[str, Any], where: str) -> str | float | None:
        value = record.get(self.label)
        if value is None:
            return None
        if self.bounds:
            return reading.score(value, where, *self.bounds)
        return value if isinstance(value, float) else reading.label(value, where, self.known)


def read_records(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """Records with named columns: JSON lines or lists, CSV, TSV (quotes are text) and Parquet.

    A number with a decimal point in JSON or Parquet is a score, every other label the name of a class.
    """
    columns: Columns | None = None

    def example(record: dict[str, Any], where: str) -> Labelled:
        nonlocal columns
        columns = columns or _columns_of(record, settings, where)
        return columns.example(record, where)

    return reading.examples(rows(path), example)


def _columns_of(record: dict[str, Any], settings: LabelledSettings, where: str) -> Columns:
    """The columns of a file whose first record this is. Raises FieldError where it has not the ones asked for."""
    found = shortened(list(record), 120)
    for field, names in (("fields", settings.fields), ("label", (settings.label,) if settings.label else ())):
        absent = [name for name in names if name not in record]
        require(not absent, field, absent, f"columns of {where}, which has {found}", "name some of them")
    known = next((names for names in KNOWN_TEXTS if all(name in record for name in names)), ())
    texts = settings.fields or known
    require(bool(texts), "fields", (), f"the columns of the texts in {where}, which has {found}", "name one or two")
    require(len(texts) <= 2, "fields", texts, "one or two columns of texts", "leave the others out")
    label = settings.label or next((name for name in KNOWN_LABELS if name in record), KNOWN_LABELS[0])
    return Columns(texts, label)


def _headed(columns: Columns, records: Callable[[Path], Iterator[tuple[str, Row]]] = rows) -> Reader:
    """A reader of files whose records have these columns."""
    return lambda path, settings: reading.examples(records(path), columns.example)


def _bare(columns: Columns, names: tuple[str, ...]) -> Reader:
    """A reader of TSV or CSV files without a header, whose cells are `names`."""

    def example(cells: list[str], where: str) -> Labelled:
        if len(cells) != len(names):
            raise BadExampleError(where, f"expected {len(names)} cells: {', '.join(names)}", f"{len(cells)} cells")
        return columns.example(dict(zip(names, cells, strict=True)), where)

    def read(path: Path, settings: LabelledSettings) -> Iterator[Any]:
        cells: Iterator[tuple[str, Cells]] = (csv_cells if suffix_of(path) == ".csv" else tab_cells)(
            utf8_of(path), path
        )
        return reading.examples(cells, example)

    return read


def _glue(label: str, *texts: str, known: tuple[str, ...] = (), bounds: tuple[float, float] | None = None) -> Reader:
    """GLUE's TSV files with a header (Wang et al. 2018), in which quotes are text."""
    return _headed(Columns(texts, label, known, bounds), lambda path: tsv_rows(utf8_of(path), path))


def read_cluewsc(path: Path, settings: LabelledSettings) -> Iterator[Any]:
    """FewCLUE's Winograd schemas: whether [a pronoun] means _a noun_, marked in the text as in CLUE's baseline."""
    return reading.examples(rows(path), _marked)


def _marked(record: dict[str, Any], where: str) -> Labelled:
    text, target = reading.text(record, "text", where), record.get("target")
    if not isinstance(target, dict):
        raise BadExampleError(where, "target is no object", shortened(target, 60))
    marks = []
    for span, (before, after) in (("span1", "__"), ("span2", "[]")):
        begin, own = target.get(f"{span}_index"), reading.text(target, f"{span}_text", where)
        if not isinstance(begin, int) or begin < 0 or text[begin : begin + len(own)] != own:
            raise BadExampleError(where, f"{span} is not at its place in the text", shortened(own, 60))
        marks += [(begin, 1, before), (begin + len(own), 0, after)]
    for at, _, mark in sorted(marks, reverse=True):  # from the end, and at one place a mark that closes comes first
        text = text[:at] + mark + text[at:]
    return Columns(("text",), "label", ("false", "true")).example(record | {"text": text}, where)


_SENTENCES = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_COLA = Columns(("sentence",), "label", BINARY)
FORMS: dict[str, Reader] = {
    "records": read_records,
    "sst2": _bare(_COLA, ("sentence", "label")),
    "cola": _bare(_COLA, ("source", "label", "annotation", "sentence")),
    "stsb": _bare(Columns(_SENTENCES, "score", bounds=(0, 5)), (*_SENTENCES, "score")),
    "rte": _headed(Columns(_NLI, "label", TWO)),
    "nli": _headed(Columns(_NLI, "label", (*THREE, TWO[1]))),
    "eprstmt": _headed(Columns(("sentence",), "label", ("Negative", "Positive"))),
    "tnews": _headed(Columns(("sentence",), "label", tuple(TOPICS))),
    "ocnli": _headed(Columns(_SENTENCES, "label", THREE)),
    "bustm": _headed(Columns(_SENTENCES, "label", BINARY)),
    "cluewsc": read_cluewsc,
    "glue_sst2": _glue("label", "sentence", known=BINARY),
    "glue_mnli": _glue("gold_label", *_SENTENCES, known=THREE),
    "glue_qqp": _glue("is_duplicate", "question1", "question2", known=BINARY),
    "glue_qnli": _glue("label", "question", "sentence", known=TWO),
    "glue_mrpc": _glue("Quality", "#1 String", "#2 String", known=BINARY),
    "glue_rte": _glue("label", *_SENTENCES, known=TWO),
    "glue_wnli": _glue("label", *_SENTENCES, known=BINARY),
    "glue_stsb": _glue("score", *_SENTENCES, bounds=(0, 5)),
}
