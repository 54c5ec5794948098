"""Sentences of tagged words: CoNLL's columns (CoNLL-2003, WNUT-17, Resume NER), Weibo NER, and records of lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lmjax.data.documents import BadRecordError
from lmjax.data.labelled import BadExampleError, Reader, TaggedWords
from lmjax.data.open_files import utf8_of
from lmjax.data.record_files import rows
from lmjax.data.tag_schemes import is_tag
from lmjax.errors import shortened
from lmjax.files import decode_text
from lmjax.settings.labelled import LabelledSettings

UNEQUAL = "its words and tags are of different number"
UNKNOWN_TAG = "a tag is neither O nor B, I, E, S or M with a kind, as others of its file are"

_BOUNDARY = "-DOCSTART-"  # begins a line of CoNLL-2003 between two documents
_NUMBERED = re.compile(r"(\D+|\d)[0-9]+")  # a character of Weibo NER, which may be a broken emoji, and its number
_WORDS, _TAGS = ("words", "tokens"), ("tags", "labels", "ner_tags")

Line = tuple[int, list[str]]  # its number from 1, and its cells
Sentence = tuple[TaggedWords, Callable[[int], str]] | BadExampleError  # with the place of each of its words


def read_conll(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Sentences between blank lines; a line is a word, and its tag in the last column, as conlleval reads it.

    Cells stand between tabs, or else between blanks; every line of a file has as many. A file of one column has no
    tags.
    """
    sentences = list(_sentences(path))
    columns = len(sentences[0][0][1]) if sentences else 0
    return _checked(_sentence(lines, path, columns) for lines in sentences)


def read_weibo(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Weibo NER (Peng and Dredze 2015): CoNLL's columns whose words are characters with their number in a word."""

    def plain(lines: list[Line]) -> Sentence:
        characters = []
        for number, (word, *others) in lines:
            found = _NUMBERED.fullmatch(word)
            if not found:
                reason = "a word is not a character and its number"
                return BadExampleError(f"{path}:{number}", reason, shortened(word))
            characters.append((number, [found[1], *others]))
        return _sentence(characters, path, 2)

    return _checked(map(plain, _sentences(path)))


def read_lists(path: Path, settings: LabelledSettings) -> Iterator[TaggedWords | BadExampleError]:
    """Records with a list of words ("words" or "tokens") and one of tags ("tags", "labels" or "ner_tags"), if any."""
    return _checked(_record(row, place) for place, row in rows(path))


def _sentences(path: Path) -> Iterator[list[Line]]:
    """The lines of each sentence. Only a line feed ends a line."""
    lines: list[Line] = []
    for number, text in enumerate(decode_text(bytes(utf8_of(path)[:]), path).split("\n"), start=1):
        line = text.removesuffix("\r")
        cells = line.split("\t") if "\t" in line else re.split(" +", line)
        if line.strip(" \t") and cells[0] != _BOUNDARY:
            lines.append((number, cells))
        elif lines:
            yield lines
            lines = []
    if lines:
        yield lines


def _sentence(lines: list[Line], path: Path, columns: int) -> Sentence:
    for number, cells in lines:
        if len(cells) != columns:
            found = f"{len(cells)} columns, {columns} in the lines before"
            return BadExampleError(f"{path}:{number}", UNEQUAL, found)
        if not (cells[0] and cells[-1]):
            return BadExampleError(f"{path}:{number}", "a word or a tag is empty", shortened("\t".join(cells)))
    words, tags = (tuple(cells[column] for _, cells in lines) for column in (0, -1))
    tagged = TaggedWords(words, tags if columns > 1 else None, f"{path}:{lines[0][0]}")
    return tagged, lambda place: f"{path}:{lines[place][0]}"


def _record(row: dict[str, Any] | BadRecordError, where: str) -> Sentence:
    if isinstance(row, BadRecordError):
        return BadExampleError(where, str(row))
    words, tags = (next((row[name] for name in names if name in row), None) for names in (_WORDS, _TAGS))
    for name, values, absent in (("words", words, False), ("tags", tags, True)):
        listed = isinstance(values, list) and all(isinstance(value, str) and value for value in values)
        if not listed and not (values is None and absent):
            return BadExampleError(where, f"expected a list of {name}, which are texts", shortened(values))
    if not words:
        return BadExampleError(where, "it has no words")
    if tags is not None and len(tags) != len(words):
        return BadExampleError(where, UNEQUAL, f"{len(words)} words, {len(tags)} tags")
    return TaggedWords(tuple(words), None if tags is None else tuple(tags), where), lambda place: where


def _checked(sentences: Iterable[Sentence]) -> Iterator[TaggedWords | BadExampleError]:
    """The sentences; where some tag of the file has a prefix and a kind, a tag that has neither makes a bad one."""
    read = list(sentences)
    tags = {tag for each in read if not isinstance(each, BadExampleError) for tag in each[0].tags or ()}
    entities = any("-" in tag and is_tag(tag) for tag in tags)
    wrong = {tag for tag in tags if entities and not is_tag(tag)}
    for each in read:
        if isinstance(each, BadExampleError):
            yield each
            continue
        sentence, place_of = each
        at = next((at for at, tag in enumerate(sentence.tags or ()) if tag in wrong), None)
        if at is None:
            yield sentence
        else:
            assert sentence.tags is not None
            yield BadExampleError(place_of(at), UNKNOWN_TAG, shortened(sentence.tags[at]))


FORMS: dict[str, Reader] = {"conll": read_conll, "weibo": read_weibo, "tagged": read_lists}
