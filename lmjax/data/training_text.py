"""The text that a tokenizer is trained on: a sample from all parts of every source.

In: the sources of a recipe and a limit in bytes of UTF-8. Out: texts in the order of the sources, and the bytes read of
each. Sources within the limit are read completely; else each has a share by its weight, or by its size where it has no
weight, and the unused share of a small source goes to the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lmjax.data.documents import Documents
from lmjax.data.sources import open_source
from lmjax.settings import SourceSettings
from lmjax.tokenizers.long_words import ends_with_long_word, without_long_words

_PLACES = 64  # sampled places of a source, and of a long document, at even distances
_LEAST = 1024  # bytes of a sample at one place
MOST_LONG_WORDS = 128  # pieces, for a trainer that examines every repeated substring


class TrainingText(NamedTuple):
    """Texts, and the name of each source, the bytes read of it, and whether that is all of it."""

    texts: list[str]
    read: list[tuple[str, int, bool]]

    @property
    def told(self) -> str:
        """What was read, as text for a message."""
        parts = [f"{'all ' if whole else ''}{size:,} of {name}" for name, size, whole in self.read]
        return f"{sum(size for _, size, _ in self.read):,} bytes: {', '.join(parts)}"


def training_text(sources: Sequence[SourceSettings], limit: int) -> TrainingText:
    """At most about `limit` bytes of the sources. Raises UserError for a source that cannot be read."""
    opened = [open_source(settings) for settings in sources]
    names = [_told(source) for source in opened]
    complete_texts = _all(opened, limit)
    if complete_texts is not None:
        sizes = [sum(map(_size, texts)) for texts in complete_texts]
        read = [(name, size, True) for name, size in zip(names, sizes, strict=True)]
        return TrainingText([text for texts in complete_texts for text in texts], read)
    weights = [_size_of(source) if source.settings.weight is None else source.settings.weight for source in opened]
    samples: dict[int, tuple[list[str], int, bool]] = {}
    left = float(limit)
    for number in sorted(range(len(opened)), key=lambda n: _size_of(opened[n]) / weights[n]):
        share = left * weights[number] / sum(weights[n] for n in range(len(opened)) if n not in samples)
        everything = _all([opened[number]], int(share))
        sample = _sample(opened[number], int(share)) if everything is None else everything[0]
        samples[number] = (sample, sum(map(_size, sample)), everything is not None)
        left -= samples[number][1]
    ordered = [samples[number] for number in range(len(opened))]
    read = [(name, size, complete) for name, (_, size, complete) in zip(names, ordered, strict=True)]
    return TrainingText([text for sample, _, _ in ordered for text in sample], read)


def with_few_long_words(texts: Iterable[str]) -> tuple[list[str], int]:
    """The texts with at most 128 of the longest pieces that `without_long_words` cuts, and how many there were.

    For SentencePiece's unigram, whose time is quadratic in such text: 300 kB of DNA take a minute.
    """
    pieces = list(without_long_words(texts))
    long = [number for number, piece in enumerate(pieces) if ends_with_long_word(piece)]
    if len(long) <= MOST_LONG_WORDS:
        return pieces, len(long)
    chosen = {long[len(long) * place // MOST_LONG_WORDS] for place in range(MOST_LONG_WORDS)}
    dropped = set(long) - chosen
    return [piece for number, piece in enumerate(pieces) if number not in dropped], len(long)


def _all(sources: Sequence[Documents], limit: int) -> list[list[str]] | None:
    """The texts of each source, or None where they hold more than `limit` bytes."""
    texts: list[list[str]] = []
    for source in sources:
        texts.append([])
        for index in range(len(source)):
            texts[-1] += source.read(index, index + 1)[0]
            limit -= _size(texts[-1][-1]) if texts[-1] else 0
            if limit < 0:
                return None
    return texts


def _sample(source: Documents, limit: int) -> list[str]:
    """About `limit` bytes of consecutive documents from places at even distances over the source."""
    places = min(len(source), _PLACES, max(1, limit // _LEAST))
    firsts = [len(source) * place // places for place in range(places + 1)]
    # the share of the limit that each place has: by length where every document is a place
    shares = [1.0] * places
    if places == len(source):
        shares = [float(sum(map(_size, source.read(index, index + 1)[0]))) for index in range(places)]
    texts: list[str] = []
    size, due = 0, 0.0
    for place, share in enumerate(shares):
        due += limit * share / (sum(shares) or 1.0)
        for index in range(firsts[place], firsts[place + 1]):
            if size >= int(due):
                break
            for text in source.read(index, index + 1)[0]:
                pieces = _spread(text, int(due) - size)
                size += sum(map(_size, pieces))
                texts += pieces
    return texts


def _spread(text: str, limit: int) -> list[str]:
    """The text, or at most `limit` bytes of it, in pieces at even distances that begin after a blank."""
    if _size(text) <= limit:
        return [text]
    places = max(1, min(_PLACES, limit // _LEAST))
    size = limit // places  # bytes of a piece
    pieces = []
    for place in range(places):
        first = (len(text) - size) * place // (places - 1) if places > 1 else 0
        first = max(0, first)
        piece = text[first : first + size].encode("utf-8")[:size].decode("utf-8", "ignore")
        blank = re.search(r"\s", piece) if first else None
        pieces.append(piece[blank.end() :] if blank and blank.end() < len(piece) else piece)
    return pieces


def _told(source: Documents) -> str:
    left_out = f" (not read: {', '.join(source.left_out)})" if source.left_out else ""
    return source.name.removeprefix("source ") + left_out


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _size_of(source: Documents) -> float:
    """An estimate of the bytes of the selected part of the source."""
    return max(1.0, source.size_bytes * (source.settings.end - source.settings.begin))
