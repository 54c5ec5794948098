"""Tagged words as rows: [CLS] tokens [SEP], with a label at the first token of each word.

In: sentences and a tokenizer. Out: rows. A sentence that is longer than a row is read in windows that overlap, and a
word counts once, in the window that sees most around its first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, TOKENS, TYPES, Batch, one_segment
from lmjax.data.frames import Frame
from lmjax.data.labelled import TaggedWords, UnfitExampleError
from lmjax.data.token_strings import TokenStrings
from lmjax.data.windows import Windows, most_context, windows
from lmjax.errors import nearest, shortened
from lmjax.tokenizers.tokenizer import Tokenizer

_NONE = -1  # the label of a token that begins no word, or a word without a tag


@dataclass(frozen=True, eq=False)
class TaggedRows:
    """The rows of sentences, window after window of each; a `Rows` of `sequence_length` columns."""

    sentences: Sequence[TaggedWords]
    frame: Frame
    sequence_length: int
    tokens: TokenStrings
    labels: TokenStrings  # of each token; -1 where it has none
    leads: TokenStrings  # of each token the window, of those of its sentence, that counts
    words: Sequence[np.ndarray]  # of each sentence: the words that have tokens, int64 [2, n], and their first tokens
    windows: Windows
    dropped_tokens = 0

    def __len__(self) -> int:
        return len(self.windows.texts)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each row, int32 [R]."""
        return (self.windows.ends - self.windows.begins + 2).astype(np.int32)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """The row of each sentence's first window, int64 [sentences]."""
        return np.searchsorted(self.windows.texts, np.arange(len(self.sentences)))

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [B]: all fields are [B, T]."""
        texts, begins, ends = (each[indices] for each in self.windows)
        column_T = np.arange(self.sequence_length)[None]
        place_BT = column_T - 1 + begins[:, None]
        last_B1 = (ends - begins + 1)[:, None]  # the column of the last special token
        tokens_BT, labels_BT, leads_BT = (each.at(texts, place_BT) for each in (self.tokens, self.labels, self.leads))
        tokens_BT[:, 0] = self.frame.begin
        np.put_along_axis(tokens_BT, last_B1, np.int32(self.frame.end), axis=1)
        real_BT = column_T <= last_B1
        inside_BT = (column_T >= 1) & (column_T < last_B1)
        counted_BT = inside_BT & (labels_BT != _NONE) & (leads_BT == (indices - self.first_rows[texts])[:, None])
        return {
            TOKENS: np.where(real_BT, tokens_BT, np.int32(0)),
            TYPES: np.zeros(real_BT.shape, np.int32),
            **one_segment(real_BT),
            LABELS: np.where(counted_BT, labels_BT, np.int32(0)),
            LABEL_WEIGHTS: counted_BT.astype(np.float32),
        }

    def of_words(self, values_RT: np.ndarray) -> list[dict[int, np.generic]]:
        """For each sentence, what [R, T] has for its words, by their numbers; words without a token have nothing."""
        found = []
        for number, ((words, places), row) in enumerate(zip(self.words, self.first_rows, strict=True)):
            rows = row + self.leads[number][places]
            values = values_RT[rows, places - self.windows.begins[rows] + 1]
            found.append(dict(zip(words.tolist(), values, strict=True)))
        return found


def tagged_rows(
    sentences: Sequence[TaggedWords],
    tokenizer: Tokenizer,
    frame: Frame,
    labels: Sequence[str],
    length: int = 128,
    stride: int = 64,
    before: str = " ",
) -> TaggedRows:
    """The rows of sentences: `length` columns, windows `stride` tokens apart.

    labels: the tags, whose places are the labels. before: what stands before every word but the first, which makes it
      a word for tokenizers that know words by the blank before them.
    Raises UserError for a tag that is not among the labels, with the place of its sentence.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    ids, words, marks = [], [], []
    for each, pieces in zip(sentences, _pieces_of_words(sentences, tokenizer, before), strict=True):
        sizes = np.array([len(piece) for piece in pieces], np.int64)
        having = np.flatnonzero(sizes)
        words.append(np.stack([having, (np.cumsum(sizes) - sizes)[having]]))
        ids.append(np.concatenate(pieces))
        mark = np.full(len(ids[-1]), _NONE, np.int32)
        if each.tags is not None:
            mark[words[-1][1]] = tag_numbers(each, numbers)[having]
        marks.append(mark)
    tokens = TokenStrings.of(ids)
    cut = windows(tokens.sizes, length - 2, stride)
    edges = np.searchsorted(cut.texts, np.arange(len(sentences) + 1))
    leads = [
        most_context(cut.begins[a:b], cut.ends[a:b], size).astype(np.int32) if b > a + 1 else np.zeros(size, np.int32)
        for size, a, b in zip(tokens.sizes.tolist(), edges[:-1], edges[1:], strict=True)
    ]
    return TaggedRows(sentences, frame, length, tokens, TokenStrings.of(marks), TokenStrings.of(leads), words, cut)


def _pieces_of_words(sentences: Sequence[TaggedWords], tokenizer: Tokenizer, before: str) -> Iterator[list[np.ndarray]]:
    """The token ids of each word of each sentence. A word that occurs often is encoded once."""
    numbers: dict[str, int] = {}
    texts = [
        [numbers.setdefault(before * (place > 0) + word, len(numbers)) for place, word in enumerate(each.words)]
        for each in sentences
    ]
    ids = tokenizer.encode_batch(list(numbers))
    return ([ids[number] for number in own] for own in texts)


def tag_numbers(sentence: TaggedWords, numbers: Mapping[str, int]) -> np.ndarray:
    """The labels of a sentence's tags, int32 [words]. Raises UserError for a tag that has none."""
    tags = sentence.tags or ()
    unknown = next((tag for tag in tags if tag not in numbers), None)
    if unknown is not None:
        raise UnfitExampleError(
            f"{sentence.where}: the tag {shortened(unknown)}: expected one of the {len(numbers)} tags of the training "
            f"data; {nearest(unknown, numbers)}",
            "a tag that the training data have not",
        )
    return np.array([numbers[tag] for tag in tags], np.int32)
