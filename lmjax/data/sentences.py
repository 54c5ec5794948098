"""Where sentences end in token shards.

In: shards, and for each entry of the vocabulary whether a sentence ends with it. Out: the first and last position of
every sentence. Shards keep no lines, and WordPiece has no token for their ends: a sentence ends behind a full stop, a
question mark or the like with the brackets and quotes that close behind it, at a line feed where the tokenizer has a
token for it, at the end of its document and, where none of these comes, after so many tokens. An abbreviation therefore
ends one, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.data.token_shards import TokenShards
from lmjax.data.windows import windows
from lmjax.tokenizers.tokenizer import Tokenizer

_ENDS = ".!?\u2026\u3002\uff01\uff1f"  # an ellipsis, and the Chinese marks
_CLOSES = ")]\u201d\u2019\xbb\u300d\u300f\uff09\u3011\u300b"
_BLOCK = 1 << 22  # tokens that are looked at together; marks on both sides of a cut end two sentences


class SentenceMarks(NamedTuple):
    """For each entry of the vocabulary, bool [entries]: whether it ends a sentence, or closes behind such an end."""

    ends: np.ndarray
    closes: np.ndarray


class Sentences(NamedTuple):
    """S sentences in the order of the shards, and which of them belong to each document that has any."""

    begins: np.ndarray  # int64 [S]: position of the first token
    ends: np.ndarray  # int64 [S]: behind the last one
    first: np.ndarray  # int64 [documents + 1]: the number of each document's first sentence


def find_sentences(shards: TokenShards, marks: SentenceMarks, longest: int) -> Sentences:
    """The sentences of all documents, without the end-of-text tokens; longer ones are cut every `longest` tokens."""
    starts, stops = shards.document_bounds()[:-1], shards.document_stops()
    full = stops > starts
    starts, stops = starts[full], stops[full]
    ends = np.union1d(_marked(shards, marks), stops)
    document = np.searchsorted(starts, ends, side="left") - 1
    inside = (document >= 0) & (ends <= stops[document])
    ends, document = ends[inside], document[inside]
    begins = np.maximum(np.concatenate([[0], ends[:-1]]), starts[document])
    cut = windows(ends - begins, longest, longest)
    first = np.concatenate([[0], np.cumsum(np.bincount(document[cut.texts], minlength=len(starts)))])
    return Sentences(begins[cut.texts] + cut.begins, begins[cut.texts] + cut.ends, first)


def _marked(shards: TokenShards, marks: SentenceMarks) -> np.ndarray:
    """The positions behind marks and what closes behind them, int64, in order."""
    found = []
    for at in range(0, shards.tokens, _BLOCK):
        tokens = shards.windows(np.array([at]), min(_BLOCK, shards.tokens - at))[0]
        ends, places = marks.ends[tokens], np.arange(len(tokens))
        run = ends | marks.closes[tokens]
        last_mark = np.maximum.accumulate(np.where(ends, places, -1))
        before_run = np.maximum.accumulate(np.where(run, -1, places))
        stops = run & ~np.append(run[1:], False) & (last_mark > before_run)
        found.append(at + 1 + np.flatnonzero(stops))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def sentence_marks(tokenizer: Tokenizer) -> SentenceMarks:
    """Which entries of a tokenizer end a sentence, or close behind its end."""
    texts = [tokenizer.decode([index]).removeprefix("##") for index in range(tokenizer.vocab_size)]
    bare = [text.strip() for text in texts]
    ends = [(bool(word) and word[-1] in _ENDS) or "\n" in text for word, text in zip(bare, texts, strict=True)]
    closes = [bool(word) and not word.strip(_CLOSES) for word in bare]
    return SentenceMarks(np.array(ends), np.array(closes))
