"""Words too long for a trainer, whose time grows with the square of a word's length: texts are cut within them.

A word here is what a tokenizer never cuts before it is trained: letters, digits, or other signs in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_LONGEST = 1024  # characters
_SIGNS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)")
_LONG_WORD = re.compile("|".join(rf"(?<!{sign}){sign}{{{_LONGEST + 1},}}" for sign in _SIGNS))
_ENDS_LONG = re.compile("|".join(rf"(?<!{sign}){sign}{{{_LONGEST}}}\Z" for sign in _SIGNS))


def without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut within words of more than 1,024 letters, digits or other signs, such as DNA has."""
    for text in texts:
        first = 0
        for word in _LONG_WORD.finditer(text):
            for at in range(word.start() + _LONGEST, word.end(), _LONGEST):
                yield text[first:at]
                first = at
        yield text[first:]


def ends_with_long_word(text: str) -> bool:
    """Whether the text ends with a word as long as `without_long_words` leaves them."""
    return _ENDS_LONG.search(text) is not None
