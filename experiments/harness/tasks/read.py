"""What the tasks beside this file read with: labels of their own file, questions of four choices, parts of a text."""

from pathlib import Path

import datasets

LABELS = Path("../shared/data/piqa/piqa_dev_labels.lst")
SHORT, LONG = 2_000, 40_000  # characters of the parts: with a context of 8,192 tokens the long one has two windows


def with_labels(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.add_column("label", [int(line) for line in LABELS.read_text().split()])


def with_four_choices(rows: datasets.Dataset) -> datasets.Dataset:
    """Without the questions of three or five choices, as `lmjax evaluate --task arc_easy` leaves them out."""
    return rows.filter(lambda row: row["answer"] in ("A", "B", "C", "D") and all(row[name] for name in "ABCD"))


def parts(rows: datasets.Dataset) -> datasets.Dataset:
    """Three short parts of the text and a long one."""
    text = rows["text"][0]
    ends = [SHORT, 2 * SHORT, 3 * SHORT, 3 * SHORT + LONG]
    return datasets.Dataset.from_dict(
        {"page": [text[end - size : end] for end, size in zip(ends, (SHORT, SHORT, SHORT, LONG), strict=True)]}
    )
