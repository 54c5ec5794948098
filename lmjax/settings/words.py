"""Values as the words of a command line: `--train.steps 1e3`, `--data.no-shuffle`, `--evaluation.prompts "A cat" B`.

In: words. Out: options, each with the words behind it, and values of a declared type.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lmjax.errors import UserError, nearest, shortened
from lmjax.fields import described

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Option(NamedTuple):
    """An option as it is written, without a value behind "=", and the words that follow it."""

    written: str
    words: tuple[str, ...]

    @property
    def path(self) -> list[str]:
        """The names on the way to a field, as Python writes them: "data.no-shuffle" is ["data", "no_shuffle"]."""
        return self.written.lstrip("-").replace("-", "_").split(".")


def is_option(word: str) -> bool:
    """Whether the word begins an option: a negative number does not."""
    return word.startswith("-") and not re.fullmatch(r"-[\d.].*", word)


def options_of(words: Sequence[str]) -> list[Option]:
    """The options that the words are. Raises UserError for a word before the first option."""
    found: list[Option] = []
    for word in words:
        if is_option(word):
            written, equals, value = word.partition("=")
            found.append(Option(written, (value,) if equals else ()))
        elif not found:
            raise UserError(f"{shortened(word)}: expected an option, such as --train.steps 100; leave it out")
        else:
            found[-1] = Option(found[-1].written, (*found[-1].words, word))
    return found


def value_of(kind: Any, option: Option) -> Any:
    """The value of a declared type that the words of an option are; a boolean's option alone is True.

    Raises UserError with the form that works.
    """
    words = option.words
    try:
        if not words and bool in _alternatives(kind):
            return True
        return _read(kind, words)
    except ValueError as error:
        written, said = shortened(option.written)[1:-1], " ".join(map(_quoted, words))
        found = f" {said if len(said) <= 200 else shortened(said)[1:-1]}" if words else ": no value"
        hint = f"; {error}" if str(error) else ""
        raise UserError(f"{written}{found}: expected {_expected(kind)}{hint}") from None


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"\S+", word) else repr(word)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is Ellipsis:
        return "any number of words" if typing.get_args(kind)[0] is str else f"words, {described(kind)}"
    return "true or false" if kind is bool else described(kind)


def _read(kind: Any, words: Sequence[str]) -> Any:
    """Raises ValueError, whose text is a hint, where the words are no value of the kind."""
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        return _first_that_reads(alternatives, words)
    if typing.get_origin(kind) is tuple:
        return _read_tuple(typing.get_args(kind), words)
    if len(words) != 1:
        raise ValueError("give one value" if words else "give it behind the option")
    return _read_word(kind, words[0])


def _first_that_reads(kinds: Sequence[Any], words: Sequence[str]) -> Any:
    if type(None) in kinds and len(words) == 1 and words[0].lower() == "none":
        return None
    hint = ""
    for kind in kinds:
        if kind is not type(None):
            try:
                return _read(kind, words)
            except ValueError as error:
                hint = hint or str(error)
    raise ValueError(hint)


def _read_tuple(kinds: Sequence[Any], words: Sequence[str]) -> tuple[Any, ...]:
    if kinds[-1] is not Ellipsis:
        if len(words) != len(kinds):
            raise ValueError(f"give {len(kinds)} words")
        return tuple(_read_word(kind, word) for kind, word in zip(kinds, words, strict=True))
    entry = kinds[0]
    if typing.get_origin(entry) is not tuple:
        return tuple(_read_word(entry, word) for word in words)
    size = len(typing.get_args(entry))
    if len(words) % size:
        raise ValueError(f"give {size} words for each entry")
    return tuple(_read(entry, words[place : place + size]) for place in range(0, len(words), size))


def _read_word(kind: Any, word: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in typing.get_args(kind)}
        if word not in choices:
            hint = nearest(word, choices)
            raise ValueError(hint if hint.startswith("did") else "")
        return choices[word]
    if kind is bool:
        if word.lower() not in TRUE + FALSE:
            raise ValueError("")
        return word.lower() in TRUE
    if kind is int:
        return _whole(word)
    if kind is float:
        return _number(word)
    if kind is str:
        return word
    raise ValueError("it cannot be set on the command line: set it in the recipe")


def _whole(word: str) -> int:
    """A whole number, also as 1e3 or 2.0e6."""
    try:
        return int(word)
    except ValueError:
        number = _number(word)
        if not number.is_integer():
            raise ValueError("") from None
        return int(number)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError("") from None
