"""Undoes the tokenisation of word-level corpora before a language model of plain text reads them.

In: the text of a corpus whose tokens are separated by blanks (WikiText: Merity et al. 2016; the Penn Treebank as
Mikolov et al. 2010 prepared it). Out: the text as its authors wrote it, as far as that can be known, and how many
tokens the corpus has. GPT-2 (Radford et al. 2019, section 3.1) was measured so: its perplexity is the exponential of
all nats over the tokens of the corpus, to which the word-level literature counts the end of every line (`<eos>`). The
corpus's tokens follow from the text that the model reads: neither "<unk>" nor the end of a line is removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Glued = tuple[bool, bool]  # whether a token is written without a blank before it, and after it

_NUMBER = re.compile("(?<![A-Za-z])N(?![A-Za-z])")
_CONTRACTIONS = ("'s", "'S", "'t", "'m", "'d", "'ve", "'re", "'ll", "n't")


class CorpusTokens(NamedTuple):
    """What a text counts in its corpus: tokens between blanks, and ends of lines, which are tokens as well."""

    words: int
    line_ends: int


def corpus_tokens(text: str) -> CorpusTokens:
    """The tokens of a text that is not detokenised yet."""
    return CorpusTokens(len(text.split()), text.count("\n"))


def _joined(tokens: Sequence[str], glued: Iterator[Glued]) -> str:
    """The tokens with blanks between those of which neither is glued to the other."""
    pieces, blank = [], False
    for token, (before, after) in zip(tokens, glued, strict=True):
        pieces += [" "] * (blank and not before) + [token]
        blank = not after
    return "".join(pieces)


_WRITTEN = {"@-@": "-", "@,@": ",", "@.@": "."}  # inside words and numbers
_EN_DASH, _APOSTROPHE = "\u2013", "\u2019"
_INSIDE = {*_WRITTEN, "\u2014", "\u2011", "\u2044", "°"}  # em dash, hyphen that breaks no line, fraction slash
_CLOSING = {*",.;:!?)]%\u2019\u201d\u2032\u2033", *_CONTRACTIONS}  # with curly quotes and primes
_OPENING = {*"([$£₤\u2018\u201c"}


def wikitext_line(line: str) -> str:
    """A line of WikiText without its marks: "0 @.@ 7 kg ( 1 @.@ 5 lb )" is "0.7 kg (1.5 lb)".

    Quotes open and close in turns. A slash, a hyphen or three dots between blanks stay, since their authors used both.
    """
    tokens = line.split()
    quotes = _quotes(tokens)

    def glued() -> Iterator[Glued]:
        for n, token in enumerate(tokens):
            before, after = tokens[n - 1] if n else "", tokens[n + 1] if n + 1 < len(tokens) else ""
            inside = token in _INSIDE or (token in (_EN_DASH, ":") and before[-1:].isdigit() and after[:1].isdigit())
            inside |= token == _APOSTROPHE and f"'{after}" in _CONTRACTIONS
            apostrophe = token[0] == "'" and token[1:2].isalpha()
            closes = inside or token in _CLOSING or apostrophe or token == before == "="
            yield quotes.get(n, (closes, inside or token in _OPENING))

    return _joined([_WRITTEN.get(token, token) for token in tokens], glued())


def _quotes(tokens: Sequence[str]) -> dict[int, Glued]:
    """The sides to which straight quotes are glued.

    A single one is an apostrophe ("the troops ' spirits", "the ' 80s") where no later one could close what it opens.
    """
    found, left, right = {}, (True, False), (False, True)
    is_open = False
    for n in (n for n, token in enumerate(tokens) if token == '"'):
        is_open = not is_open and n + 1 < len(tokens)
        found[n] = right if is_open else left
    is_open = False
    for n in (n for n, token in enumerate(tokens) if token == "'"):
        if tokens[n + 1 : n + 2] and tokens[n + 1][0].isdigit():
            found[n] = right
        elif is_open or (n and tokens[n - 1].endswith("s")) or "'" not in tokens[n + 1 :]:
            found[n], is_open = left, False
        else:
            found[n], is_open = right, True
    return found


def ptb_line(line: str) -> str:
    r"""A line of the Penn Treebank: "it did n't pay $ N N\/N" is "it didn't pay $1 1/1".

    "N" stands for any number; 1 is written in its place.
    """
    tokens = [_NUMBER.sub("1", token.replace("\\", "")) for token in line.split()]
    glued = ((token in ("'", "%") or token in _CONTRACTIONS, token in ("$", "#")) for token in tokens)
    return _joined(tokens, glued)


_LINES: dict[str, Callable[[str], str]] = {"wikitext": wikitext_line, "ptb": ptb_line}
CORPORA = tuple(_LINES)


def detokenized(text: str, corpus: str) -> str:
    """The text of one of `CORPORA` as it was before, with as many lines."""
    return "\n".join(map(_LINES[corpus], text.split("\n")))
