"""Openings and continuations of sentences of the embedded corpus: dialogue that needs no download.

In: the split of the corpus. Out: pairs of an opening, which is a prompt, and the rest of its sentence, which is the
answer of a demonstration. They depend only on the versions of the packages, and each opening occurs once.
"""

from __future__ import annotations

import re
from functools import cache

from lmjax.data.embedded_corpus import embedded_corpus

WORDS = 3  # of an opening
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,'()`-]*\.")  # one sentence, without formulas and names with dots in them
_SHORTEST, _LONGEST = 7, 22  # words of a sentence


@cache
def openings(split: str) -> tuple[tuple[str, str], ...]:
    """(opening, rest) of the plain sentences of "train" or "validation", in the order of the corpus.

    Raises UserError for another split.
    """
    pairs: dict[str, str] = {}
    for document in embedded_corpus(split):
        for paragraph in document.split("\n\n"):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                words = sentence.split(" ")
                if _SHORTEST <= len(words) <= _LONGEST and _PLAIN.fullmatch(sentence):
                    pairs.setdefault(" ".join(words[:WORDS]), " ".join(words[WORDS:]))
    return tuple(pairs.items())
