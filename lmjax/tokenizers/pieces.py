"""Tokens with their places in the text: what labels of characters and words need, and the ids of special tokens.

In: a text, and the ids and spans that a tokenizer gives. Out: `Pieces`, whose spans are of the original text, without
the blanks that many tokenizers put before a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_BLANK = re.compile(r"\s")
# Marks that stand above or below the character before them (Unicode's blocks of combining marks).
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")


class SpecialIds(NamedTuple):
    """The ids of the special tokens of a tokenizer; None where it has no such token."""

    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    pad: int | None = None
    unk: int | None = None


@dataclass(frozen=True, eq=False)
class Pieces:
    """The n tokens of a text, and where they are.

    offsets: [begin, end) of each in the characters of the original text. Begins never decrease. A span has no blanks
      at its ends, unless there is nothing else in it. The tokens of one character, such as its bytes, all have its
      span; what stands for no character has an empty one.
    words: the number of the word, from 0, that a token is part of: as the tokenizer cuts words, or between blanks where
      it cuts none; of `word_pieces`, the number of the word that was given.
    """

    ids: np.ndarray  # int32 [n]
    offsets: np.ndarray  # int64 [n, 2]
    words: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.ids)


def located(text: str, ids: np.ndarray, spans: Sequence[tuple[int, int]] | np.ndarray, words: object = None) -> Pieces:
    """The pieces of a text whose tokens have these spans; `words` is None where the tokenizer cuts no words."""
    offsets = np.array(spans, np.int64).reshape(-1, 2)
    if not text.isascii():
        offsets[:, 1] = _with_marks(text, offsets)
    blank = np.zeros(len(text), bool)
    blank[[each.start() for each in _BLANK.finditer(text)]] = True
    numbers = _between_blanks(blank, offsets[:, 0]) if words is None else np.array(words, np.int32)
    return Pieces(ids, _without_blanks(blank, offsets), numbers.astype(np.int32))


def character_of_bytes(data: bytes) -> np.ndarray:
    """The number of the character that each byte of UTF-8 is part of, int64 [bytes]."""
    return np.cumsum((np.frombuffer(data, np.uint8) & 0xC0) != 0x80) - 1  # all but the first begin with the bits 10


def joined(each: Sequence[Pieces]) -> Pieces:
    """The pieces of several words, one after the other: `words` number them, and spans are those in the word."""
    ids = np.concatenate([np.zeros(0, np.int32), *(pieces.ids for pieces in each)])
    offsets = np.concatenate([np.zeros((0, 2), np.int64), *(pieces.offsets for pieces in each)])
    return Pieces(ids, offsets, np.repeat(np.arange(len(each), dtype=np.int32), [len(pieces) for pieces in each]))


def _without_blanks(blank: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The spans without the blanks at their ends."""
    size = len(blank)
    if not blank.any():
        return offsets
    at = np.arange(size)
    following = np.minimum.accumulate(np.where(blank, size, at)[::-1])[::-1]  # the next character that is no blank
    ends = np.maximum.accumulate(np.where(blank, 0, at + 1))  # the end of the last one
    begin, end = offsets.T
    begin, end = np.append(following, size)[begin], np.append(0, ends)[end]
    return np.where((begin < end)[:, None], np.stack([begin, end], axis=1), offsets)


def _between_blanks(blank: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The number of the word that begins or continues at each place, of words that blanks part."""
    first = ~blank & np.append(True, blank[:-1])
    total = np.cumsum(first)  # words that began by then: a blank belongs to the word after it
    numbers = np.append(total - ~blank, total[-1:])
    return np.clip(numbers[begins], 0, max(int(first.sum()) - 1, 0)) if len(blank) else np.zeros(len(begins), np.int64)


def _with_marks(text: str, offsets: np.ndarray) -> np.ndarray:
    """The ends of the spans, with the marks that follow where no token stands for them: BERT drops accents."""
    ends = offsets[:, 1].copy()
    for run in _MARKS.finditer(text):
        place = np.flatnonzero(ends == run.start())
        if len(place) and (last := place[-1]) < len(ends):
            limit = offsets[last + 1, 0] if last + 1 < len(ends) else len(text)
            if limit > run.start():
                ends[place] = min(run.end(), limit)
    return ends
