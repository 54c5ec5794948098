"""Pairs of texts for next-sentence prediction, from token shards (Devlin et al. 2019, BERT, appendix A.2).

In: the documents of token shards, cut into sentences. Out: rows "[CLS] a [SEP] b [SEP]" with token types 0 and 1, and a
label: 0 where b follows a, 1 where b is from another document, as in BERT's released code. The plan of rows is made
once, with every row's label; what another document gives and what is cut off is drawn for each epoch.

As in create_pretraining_data.py, a row takes sentences up to its target length; a is a random number of the first of
them. b is the others or, for half of the rows and for those of one sentence, a stretch of another document from a
random sentence on; the others then begin the next row. The longer text loses tokens until both fit, each from its
beginning or its end at random. Beside BERT's code, targets are drawn for each row and not once for each document.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, TOKENS, TYPES, Batch, one_segment
from lmjax.data.draws import Stream, below
from lmjax.data.sentences import SentenceMarks, Sentences, find_sentences
from lmjax.data.token_shards import TokenShards
from lmjax.errors import UserError
from lmjax.settings import PairSettings

SPECIALS = 3  # of a row: [CLS] and two [SEP]


class PairPlan(NamedTuple):
    """The N rows, by document: what each reads of its own document."""

    document: np.ndarray  # int64 [N]
    begins: np.ndarray  # int64 [N]: the position of a's first token
    middles: np.ndarray  # int64 [N]: behind a's last one
    ends: np.ndarray  # int64 [N]: behind b's last one; where b is random, that of the middle
    targets: np.ndarray  # int32 [N]: the tokens that the row aims at, special ones left out
    random: np.ndarray  # bool [N]: b is from another document


class _Spans(NamedTuple):
    """R stretches of the shards."""

    begins: np.ndarray
    lengths: np.ndarray


def plan_pairs(sentences: Sentences, settings: PairSettings, most: int, stream: Stream) -> PairPlan:
    """The rows of at most `most` tokens beside the special ones. All documents advance together, a row at a time."""
    begins, ends, first = sentences
    before = np.concatenate([[0], np.cumsum(ends - begins)])  # tokens of the sentences before
    live, at, number, parts = np.arange(len(first) - 1), first[:-1].copy(), 0, []
    while len(live):
        draws = stream.uniform(live, np.full(len(live), number), 4)
        shorter = 2 + below(draws[:, 1], most - 1)
        targets = np.where(draws[:, 0] < settings.short, shorter, most)
        stop = np.minimum(np.searchsorted(before, before[at] + targets), first[live + 1])
        count = stop - at
        middle = at + 1 + below(draws[:, 2], np.maximum(count - 1, 1))
        random = (count == 1) | (draws[:, 3] < settings.random)
        last = np.where(random, middle, stop)
        rows = (live, begins[at], ends[middle - 1], ends[last - 1], targets.astype(np.int32), random)
        parts.append(PairPlan(*rows))
        going = last < first[live + 1]
        live, at, number = live[going], last[going], number + 1
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    order = np.argsort(joined[1], kind="stable")  # in the order of the shards
    return PairPlan(*(array[order] for array in joined))


class PairRows:
    """Rows of two texts, padded to `length`."""

    dropped_tokens = 0

    def __init__(
        self,
        shards: TokenShards,
        settings: PairSettings,
        marks: SentenceMarks,
        specials: tuple[int, int],
        length: int,
        stream: Stream,
    ) -> None:
        """`specials` are the ids of [CLS] and [SEP]. Raises UserError where there are not two documents with text."""
        self._shards, self._length = shards, length
        self._cls, self._sep = specials
        self._most = length - SPECIALS
        if self._most < 2:
            raise UserError(f"data.sequence_length = {length}: expected 5 or more for pairs; lengthen the rows")
        self.sentences = find_sentences(shards, marks, max(1, self._most // 2))
        documents = len(self.sentences.first) - 1
        if documents < 2:
            raise UserError(
                f"{shards.name}: {documents} document with text: expected two or more, as a second text may be from "
                'another one; set documents = "line" or "paragraph" of the source, or train without pairs'
            )
        self.plan = plan_pairs(self.sentences, settings, self._most, stream.of("plan"))
        self._other, self._cut = stream.of("other document"), stream.of("cut")

    def __len__(self) -> int:
        return len(self.plan.begins)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]: fields [R, T], and the labels [R]."""
        epochs = np.zeros_like(indices) if epochs is None else epochs
        plan = PairPlan(*(array[indices] for array in self.plan))
        a = _Spans(plan.begins, plan.middles - plan.begins)
        other = self._from_another(plan, indices, epochs)
        next_lengths = plan.ends - plan.middles
        b = _Spans(
            np.where(plan.random, other.begins, plan.middles), np.where(plan.random, other.lengths, next_lengths)
        )
        tokens_RT, ends_R, middles_R = self._laid_out(*self._truncated(a, b, indices, epochs))
        columns = np.arange(self._length)
        real_RT = columns < ends_R[:, None]
        return {
            TOKENS: tokens_RT,
            TYPES: (real_RT & (columns >= middles_R[:, None])).astype(np.int32),
            **one_segment(real_RT),
            LABELS: plan.random.astype(np.int32),
            LABEL_WEIGHTS: np.ones(len(indices), np.float32),
        }

    def _from_another(self, plan: PairPlan, indices: np.ndarray, epochs: np.ndarray) -> _Spans:
        """A stretch of another document for each row, from a random sentence on, as long as the row lacks."""
        begins, ends, first = self.sentences
        draws = self._other.uniform(indices, epochs, 2)
        document = below(draws[:, 0], len(first) - 2)
        document += document >= plan.document
        counts = first[document + 1] - first[document]
        start = begins[first[document] + below(draws[:, 1], counts)]
        lacking = np.maximum(plan.targets - (plan.middles - plan.begins), 1)
        last = np.minimum(np.searchsorted(ends, start + lacking), first[document + 1] - 1)
        return _Spans(start, ends[last] - start)

    def _truncated(self, a: _Spans, b: _Spans, indices: np.ndarray, epochs: np.ndarray) -> tuple[_Spans, _Spans]:
        """Both texts without the tokens that do not fit: the longer one loses the next, b where they are equal."""
        excess = np.maximum(a.lengths + b.lengths - self._most, 0)
        alone = np.minimum(excess, np.abs(a.lengths - b.lengths))  # the longer one's, until both are as long
        from_a = np.where(a.lengths > b.lengths, alone, 0) + (excess - alone) // 2
        from_b = excess - from_a
        heads = self._cut.uniform(indices, epochs, int(excess.max(initial=0))) < 0.5
        columns = np.arange(heads.shape[1])
        head_a = (heads & (columns < from_a[:, None])).sum(axis=1)
        head_b = (heads & (columns >= from_a[:, None]) & (columns < excess[:, None])).sum(axis=1)
        return _Spans(a.begins + head_a, a.lengths - from_a), _Spans(b.begins + head_b, b.lengths - from_b)

    def _laid_out(self, a: _Spans, b: _Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows, int32 [R, T], where each ends, and where its second text begins, int64 [R]."""
        rows, columns = np.arange(len(a.begins)), np.arange(self._length)
        tokens_RT = np.zeros((len(rows), self._length), np.int32)
        middles, ends = a.lengths + 2, a.lengths + b.lengths + SPECIALS
        for spans, place in ((a, np.ones_like(middles)), (b, middles)):
            longest = int(spans.lengths.max(initial=0))
            texts = self._shards.windows(spans.begins, longest)
            inside = (columns >= place[:, None]) & (columns < (place + spans.lengths)[:, None])
            tokens_RT[inside] = texts[np.arange(longest) < spans.lengths[:, None]]
        tokens_RT[:, 0] = self._cls
        tokens_RT[rows, middles - 1] = self._sep
        tokens_RT[rows, ends - 1] = self._sep
        return tokens_RT, ends, middles
