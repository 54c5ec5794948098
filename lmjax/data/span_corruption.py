"""Span corruption: random spans of a text are replaced by sentinels, and written behind them (T5, Raffel et al. 2020).

In: token shards. Out: rows of an encoder-decoder. The inputs are the text with sentinel k in place of its k-th span,
the targets sentinel k and the span for every k; both end with the end-of-text token. The lengths are those of the
released code (t5/data/preprocessors.py, random_spans_helper and random_spans_noise_mask): as many tokens make a row
that its inputs have just `sequence_length`, sentinels and end included, so that every row is full.

"split": the documents, each with its end-of-text token, are concatenated and cut. "first_fit": a document, cut only
where it is longer than a row, is corrupted by itself, and several share a row as segments. A text that has one span, as
up to 30 tokens do, loses its end: in the released code, too, texts begin with a token that stays and end with one that
does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.draws import Stream
from lmjax.data.masked_rows import epochs_drawn
from lmjax.data.seq2seq_rows import RowPlan, laid_out, plan_examples
from lmjax.data.token_shards import TokenShards
from lmjax.data.token_strings import TokenStrings
from lmjax.data.windows import windows
from lmjax.errors import UserError, require
from lmjax.settings import SpanSettings
from lmjax.settings.masking import sentinel
from lmjax.tokenizers.tokenizer import Tokenizer


class Counts(NamedTuple):
    """Of texts with n tokens each: the tokens in spans, and the spans; int64 [n]."""

    noise: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, settings: SpanSettings) -> Counts:
        """Rounded to even, as Python and TensorFlow do. A text of at least two tokens keeps one and loses one."""
        noise = np.rint(lengths * settings.density).astype(np.int64).clip(1, np.maximum(lengths - 1, 1))
        spans = np.rint(noise / settings.mean_length).astype(np.int64)
        return cls(noise, spans.clip(1, np.maximum(np.minimum(noise, lengths - noise), 1)))

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """The lengths of inputs and targets, sentinels and end-of-text included, int64 [n, 2]."""
        return np.stack([lengths - self.noise + self.spans + 1, self.noise + self.spans + 1], axis=1)


class RowLengths(NamedTuple):
    """Of a full row: the tokens of text that make it, and the lengths of its inputs and targets."""

    text: int
    inputs: int
    targets: int

    @classmethod
    def of(cls, inputs: int, settings: SpanSettings) -> RowLengths:
        """For rows whose inputs have at most so many tokens. Raises FieldError where no text of two tokens fits."""

        def sizes(text: int) -> list[int]:
            length = np.array([text])
            return Counts.of(length, settings).sizes(length)[0].tolist()

        require(inputs >= 3, "data.sequence_length", inputs, "3 or more for spans of a text", "lengthen the rows")
        text = inputs - 1
        while sizes(text + 1)[0] <= inputs:
            text += 1
        if settings.density == 0.5 and sizes(text)[1] > sizes(text)[0]:
            text -= 1
        return cls(text, *sizes(text))


@dataclass(frozen=True, eq=False)
class SpanVocabulary:
    """What span corruption asks of a tokenizer: the ids of sentinel 0, 1, ... and of the end of a text."""

    sentinels: np.ndarray  # int32
    eos: int


def span_vocabulary(tokenizer: Tokenizer) -> SpanVocabulary:
    """Sentinels are the tokens with their names. Raises UserError where the tokenizer has none."""
    spelled = getattr(tokenizer, "token", None)
    entries = {} if spelled is None else {spelled(index): index for index in range(tokenizer.vocab_size)}
    found: list[int] = []
    while (index := _entry(tokenizer, entries, sentinel(len(found)))) is not None:
        found.append(index)
    if not found:
        raise UserError(
            f"the {tokenizer.kind} tokenizer has no token {sentinel(0)}: expected sentinels for spans of a text; set "
            "tokenizer.user_symbols to lmjax.settings.masking.sentinel_symbols(), or use the folder of T5's tokenizer"
        )
    return SpanVocabulary(np.array(found, np.int32), tokenizer.eos_id)


def _entry(tokenizer: Tokenizer, entries: dict[str, int], name: str) -> int | None:
    """The id of a token; of a tokenizer that does not spell its entries, that of a text which is a single token."""
    if entries:
        return entries.get(name)
    ids = tokenizer.encode(name)
    return ids[0] if len(ids) == 1 else None


def partitions(draws_PN: np.ndarray, items_P: np.ndarray, parts_P: np.ndarray) -> np.ndarray:
    """Where the parts of a random partition end, int64 [P, most parts]: `items` into `parts` that are not empty.

    Every partition is as likely as the others. Behind a row's last part, `items` is repeated.
    """
    most = int(parts_P.max(initial=1))
    columns = np.arange(draws_PN.shape[1])
    order = np.argsort(np.where(columns < items_P[:, None] - 1, draws_PN, 2.0), axis=1)[:, : most - 1]
    inner = np.where(np.arange(most - 1) < parts_P[:, None] - 1, order + 1, items_P[:, None])
    return np.concatenate([np.sort(inner, axis=1), items_P[:, None]], axis=1)


def noise_mask(draws: tuple[np.ndarray, np.ndarray], lengths_P: np.ndarray, counts: Counts) -> np.ndarray:
    """Which tokens are in spans, bool [P, N]; texts begin with a token that is in none and end with one that is."""
    kept_PS = partitions(draws[0], lengths_P - counts.noise, counts.spans)
    noise_PS = partitions(draws[1], counts.noise, counts.spans)
    P, N = len(lengths_P), draws[0].shape[1]
    begins = kept_PS + np.pad(noise_PS, ((0, 0), (1, 0)))[:, :-1]
    first = np.arange(P)[:, None] * (N + 1)

    def counted(columns: np.ndarray) -> np.ndarray:
        return np.bincount((first + columns).ravel(), minlength=P * (N + 1)).reshape(P, N + 1)

    return (counted(begins) - counted(kept_PS + noise_PS)).cumsum(axis=1)[:, :-1] > 0


def corrupted(
    tokens_PN: np.ndarray, lengths_P: np.ndarray, noise_PN: np.ndarray, vocabulary: SpanVocabulary
) -> tuple[TokenStrings, TokenStrings]:
    """Inputs and targets of texts whose spans are given."""
    real_PN = np.arange(tokens_PN.shape[1]) < lengths_P[:, None]
    sides = []
    for hidden_PN in (noise_PN & real_PN, ~noise_PN & real_PN):
        first_PN = hidden_PN & ~np.pad(hidden_PN, ((0, 0), (1, 0)))[:, :-1]
        sentinels_PN = vocabulary.sentinels[np.maximum(first_PN.cumsum(axis=1) - 1, 0)]
        kept_PN = real_PN & (~hidden_PN | first_PN)
        kept = np.pad(kept_PN, ((0, 0), (0, 1)), constant_values=True)
        texts = np.pad(np.where(first_PN, sentinels_PN, tokens_PN), ((0, 0), (0, 1)), constant_values=vocabulary.eos)
        sides.append(TokenStrings.of_sizes(texts[kept].astype(np.int32), kept.sum(axis=1)))
    return sides[0], sides[1]


class SpanRows:
    """Rows of corrupted text. `length` is that of the inputs; `lengths` has what follows from it."""

    def __init__(
        self,
        shards: TokenShards,
        settings: SpanSettings,
        vocabulary: SpanVocabulary,
        length: int,
        stream: Stream,
        *,
        whole_documents: bool = False,
        keep_rest: bool = False,
    ) -> None:
        """`keep_rest`: the last partial row is kept, padded. Raises UserError for too little text or few sentinels."""
        self.lengths = RowLengths.of(length, settings)
        self._shards, self._settings, self._vocabulary = shards, settings, vocabulary
        self._draws = stream.of("kept"), stream.of("noise")
        self._check_sentinels()
        pieces = self._documents() if whole_documents else self._cuts(keep_rest)
        self._begins, self._text, self.dropped_tokens = pieces
        if not len(self._begins):
            raise UserError(
                f"{shards.name}: {shards.tokens} tokens are less than the {self.lengths.text} of a row; give more "
                "text, or lower data.sequence_length"
            )
        sizes = Counts.of(self._text, settings).sizes(self._text)
        one_each = RowPlan(np.arange(len(sizes) + 1), np.arange(len(sizes)))
        self.plan = plan_examples(sizes, self.lengths[1:]) if whole_documents else one_each

    def __len__(self) -> int:
        return len(self.plan.first) - 1

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]."""
        pieces, counts = self.plan.examples(indices)
        drawn = np.repeat(epochs_drawn(indices, epochs, self._settings.corruptions), counts)
        return laid_out(*self.examples(pieces, drawn), counts, self.lengths[1:])

    def examples(self, pieces: np.ndarray, drawn: np.ndarray) -> tuple[TokenStrings, TokenStrings]:
        """Inputs and targets of pieces of text with these numbers, int64 [P], as drawn in these epochs."""
        lengths_P = self._text[pieces]
        longest = int(lengths_P.max(initial=2))
        tokens_PN = self._shards.windows(self._begins[pieces], longest)
        kept, noise = (stream.uniform(pieces, drawn, longest) for stream in self._draws)
        noise_PN = noise_mask((kept, noise), lengths_P, Counts.of(lengths_P, self._settings))
        return corrupted(tokens_PN, lengths_P, noise_PN, self._vocabulary)

    def _cuts(self, keep_rest: bool) -> tuple[np.ndarray, np.ndarray, int]:
        full, rest = divmod(self._shards.tokens, self.lengths.text)
        kept = keep_rest and rest > 1
        begins = np.arange(full + kept) * self.lengths.text
        return begins, np.minimum(self._shards.tokens - begins, self.lengths.text), 0 if kept else rest

    def _documents(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Pieces of documents without their end-of-text tokens; those of a single token are left out."""
        begins = self._shards.document_bounds()[:-1]
        cut = windows(self._shards.document_stops() - begins, self.lengths.text, self.lengths.text)
        lengths = cut.ends - cut.begins
        whole = lengths > 1
        return (begins[cut.texts] + cut.begins)[whole], lengths[whole], int(lengths[~whole].sum())

    def _check_sentinels(self) -> None:
        text = np.array([self.lengths.text])
        spans = int(Counts.of(text, self._settings).spans[0])
        fits = spans <= len(self._vocabulary.sentinels)
        expected = f"rows of at most {len(self._vocabulary.sentinels)} spans, the tokenizer's sentinels, not {spans}"
        require(fits, "data.sequence_length", self.lengths.inputs, expected, "shorten the rows, or add sentinels")
