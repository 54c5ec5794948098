"""Sentences of tagged words: CoNLL's columns (CoNLL-2003, WNUT-17, Resume NER), Weibo NER, and records of lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmjax.data.labelled import BadExampleError, Reader, TaggedWords
from lmjax.data.labelled_sets import reading
from lmjax.data.open_files import utf8_of
from lmjax.data.record_files import rows
from lmjax.data.tag_schemes import OUTSIDE, is_tag
from lmjax.errors import shortened
from lmjax.files import decode_text
from lmjax.settings.labelled import LabelledSettings

UNEQUAL = "its words and tags are of different number"
UNKNOWN_TAG = "a tag is neither O nor B, I, E, S or M with a kind, as others of its file are"

_BOUNDARY = "-DOCSTART-"  # begins a line of CoNLL-2003 between two documents
_NUMBERED = re.compile(r"(\D+|\d)[0-9]+")  # a character of Weibo NER, which may be a broken emoji, and its number
_WORDS, _TAGS = ("words", "tokens"), ("tags", "labels", "ner_tags")

Line = tuple[int, list[str]]  # its number from 1, and its cells


def read_conll(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Sentences between blank lines; a line is a word, and its tag in the last column, as conlleval reads it.

    Cells stand between tabs, or else between blanks; every line of a file has as many. A file of one column has no
    tags.
    """
    sentences = list(_sentences(path))
    columns = len(sentences[0][1][0][1]) if sentences else 0
    return _checked(reading.examples(iter(sentences), lambda lines, where: _sentence(lines, path, columns)), path)


def read_weibo(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Weibo NER (Peng and Dredze 2015): CoNLL's columns whose words are characters with their number in a word."""

    def plain(lines: list[Line], where: str) -> TaggedWords:
        characters = []
        for number, (word, *others) in lines:
            found = _NUMBERED.fullmatch(word)
            if not found:
                reason = "a word is not a character and its number"
                raise BadExampleError(f"{path}:{number}", reason, shortened(word))
            characters.append((number, [found[1], *others]))
        return _sentence(characters, path, 2)

    return _checked(reading.examples(_sentences(path), plain), path)


def read_lists(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Records with a list of words ("words" or "tokens") and one of tags ("tags", "labels" or "ner_tags"), if any.

    A record without words may have a "text", whose words stand between blanks.
    """
    return _checked(reading.examples(rows(path), lambda record, where: _record(record, where, characters=False)))


def read_characters(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """As `read_lists`, but the words of a text are its characters that are no blanks."""
    return _checked(reading.examples(rows(path), lambda record, where: _record(record, where, characters=True)))


def words_of(text: str, characters: bool) -> tuple[str, ...]:
    """The words of a text between its blanks, or its characters that are no blanks."""
    return tuple(re.findall(r"\S" if characters else r"\S+", text))


def _sentences(path: Path) -> Iterator[tuple[str, list[Line]]]:
    """The lines of each sentence, with the place of the first one. Only a line feed ends a line."""
    lines: list[Line] = []
    for number, text in enumerate([*decode_text(bytes(utf8_of(path)[:]), path).split("\n"), ""], start=1):
        line = text.removesuffix("\r")
        cells = line.split("\t") if "\t" in line else re.split(" +", line)
        if line.strip(" \t") and cells[0] != _BOUNDARY:
            lines.append((number, cells))
        elif lines:
            yield f"{path}:{lines[0][0]}", lines
            lines = []


def _sentence(lines: list[Line], path: Path, columns: int) -> TaggedWords:
    for number, cells in lines:
        if len(cells) != columns:
            found = f"{len(cells)} columns, {columns} in the lines before"
            raise BadExampleError(f"{path}:{number}", UNEQUAL, found)
        if not (cells[0] and cells[-1]):
            raise BadExampleError(f"{path}:{number}", "a word or a tag is empty", shortened("\t".join(cells)))
    words, tags = (tuple(cells[column] for _, cells in lines) for column in (0, -1))
    return TaggedWords(words, tags if columns > 1 else None, f"{path}:{lines[0][0]}")


def _record(record: dict[str, Any], where: str, characters: bool) -> TaggedWords:
    if "text" in record and not record.keys() & set(_WORDS):
        text = reading.text(record, "text", where)
        record = record | {_WORDS[0]: list(words_of(text, characters))}
    else:
        text = None
    words, tags = (next((name for name in names if name in record), names[0]) for names in (_WORDS, _TAGS))
    listed = [reading.texts(record, name, where) for name in (words, tags) if name == words or name in record]
    if not all(text for texts in listed for text in texts):
        raise BadExampleError(where, "a word or a tag is empty")
    if len({len(texts) for texts in listed}) > 1:
        raise BadExampleError(where, UNEQUAL, " and ".join(str(len(texts)) for texts in listed))
    return TaggedWords(listed[0], listed[1] if len(listed) > 1 else None, where, text)


def _checked(
    sentences: Iterable[TaggedWords | BadExampleError], path: Path | None = None
) -> Iterator[TaggedWords | BadExampleError]:
    """The sentences. Where some tag of the file has a prefix and a kind, one with a tag that has neither is bad.

    path: the file, where each word is one of its lines.
    """
    read = list(sentences)
    tags = {tag for each in read if isinstance(each, TaggedWords) for tag in each.tags or ()}
    entities = any(tag != OUTSIDE and is_tag(tag) for tag in tags)
    wrong = {tag for tag in tags if entities and not is_tag(tag)}
    for each in read:
        tag = next((tag for tag in each.tags or () if tag in wrong), None) if isinstance(each, TaggedWords) else None
        if tag is None:
            yield each
        else:
            assert isinstance(each, TaggedWords) and each.tags is not None
            line = int(each.where.rpartition(":")[2]) + each.tags.index(tag) if path else 0
            yield BadExampleError(f"{path}:{line}" if path else each.where, UNKNOWN_TAG, shortened(tag))


FORMS: dict[str, Reader] = {
    "conll": read_conll,
    "weibo": read_weibo,
    "tagged": read_lists,
    "characters": read_characters,
}
