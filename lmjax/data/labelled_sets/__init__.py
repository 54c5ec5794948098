"""The readers of labelled sets by name: LabelledSettings in, examples out. A module has those of one family."""

from __future__ import annotations

from collections import Counter

from lmjax.data.labelled import BadExampleError, Examples, Reader
from lmjax.data.labelled_sets import choices, questions, tagged_words, texts
from lmjax.data.open_files import list_files
from lmjax.errors import UserError, nearest, require
from lmjax.settings.labelled import LabelledSettings

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".xml", ".txt", ".conll", ".bmes")

FORMS: dict[str, Reader] = {**texts.FORMS, **choices.FORMS, **questions.FORMS, **tagged_words.FORMS}


def read_examples(settings: LabelledSettings) -> Examples:
    """The examples of a source, in the order of its files and records.

    Raises UserError for an unknown form, a file that cannot be read or has no examples, and, unless the settings skip
    them, at the first record that is no example.
    """
    name = settings.form or "records"
    require(name in FORMS, "form", settings.form, "a known form", nearest(name, FORMS))
    reader = FORMS[name]
    found = [each for path in list_files(settings.path, SUFFIXES) for each in reader(path, settings)]
    part = found[round(len(found) * settings.begin) : round(len(found) * settings.end)]
    bad = [each for each in part if isinstance(each, BadExampleError)]
    if bad and settings.on_bad_record == "error":
        raise bad[0]
    items = [each for each in part if not isinstance(each, BadExampleError)]
    if not items:
        why = f"; the first of {len(bad)} skipped records: {bad[0]}" if bad else ""
        raise UserError(f"{settings.path}: no example in records {settings.begin:.0%} to {settings.end:.0%}{why}")
    return Examples(items, dict(Counter(error.reason for error in bad)))
