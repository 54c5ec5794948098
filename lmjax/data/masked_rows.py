"""Masked rows: some tokens of a row are hidden, and the model predicts them (Devlin et al. 2019, BERT, section 3.1).

In: any rows of token fields. Out: the same rows, whose `tokens` are those that the model reads, and the columns that it
predicts with the tokens that were there: only these reach the vocabulary. Full rows of segments give RoBERTa's batches,
which have no padding and no pairs (Liu et al. 2019, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmjax.data.batch import (
    POSITIONS,
    PREDICTED,
    PREDICTED_TARGETS,
    PREDICTED_WEIGHTS,
    SEGMENTS,
    TARGETS,
    TOKENS,
    WEIGHTS,
    Batch,
)
from lmjax.data.draws import Stream, below
from lmjax.data.packing import Rows
from lmjax.errors import UserError
from lmjax.settings import MaskingSettings
from lmjax.tokenizers.tokenizer import Tokenizer

_CONTINUED = "##"  # WordPiece's mark of a piece that continues a word
_BEGUN = ("\u2581", "\u0120")  # SentencePiece's and byte-level BPE's marks of a blank before a word


@dataclass(frozen=True, eq=False)
class MaskVocabulary:
    """What masking asks of a tokenizer: its entries, the id of [MASK], and the special ids that are never selected.

    starts_word: bool [entries], False for a piece that continues a word; whole words need it.
    """

    entries: int
    mask: int
    special: tuple[int, ...]
    starts_word: np.ndarray | None = None


def mask_vocabulary(tokenizer: Tokenizer, settings: MaskingSettings) -> MaskVocabulary:
    """That of a tokenizer. Raises UserError where it has no [MASK], or does not show where words begin."""
    special = tokenizer.special
    if special.mask is None:
        raise UserError(
            f"the {tokenizer.kind} tokenizer: expected one with [MASK], for a masked language model; set "
            'tokenizer.kind = "wordpiece", or name a folder whose tokenizer has it'
        )
    named = (special.cls, special.sep, special.mask, special.pad, tokenizer.eos_id)
    never = sorted({index for index in named if index is not None})
    starts = word_starts(tokenizer) if settings.whole_words else None
    return MaskVocabulary(tokenizer.vocab_size, special.mask, tuple(never), starts)


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Which entries begin a word, bool [entries]: WordPiece marks those that do not, other vocabularies those that do.

    Raises UserError for a tokenizer without such marks.
    """
    spelled = getattr(tokenizer, "token", None)
    tokens = [] if spelled is None else [spelled(index) for index in range(tokenizer.vocab_size)]
    if any(token.startswith(_CONTINUED) for token in tokens):
        return np.array([not token.startswith(_CONTINUED) for token in tokens])
    if any(token.startswith(_BEGUN) for token in tokens):
        return np.array([token.startswith(_BEGUN) for token in tokens])
    raise UserError(
        f"masking.whole_words = True: the {tokenizer.kind} tokenizer does not mark where words begin: expected pieces "
        f"such as {_CONTINUED}ing; leave whole_words out, or use a wordpiece tokenizer"
    )


def epochs_drawn(indices: np.ndarray, epochs: np.ndarray | None, different: int | None) -> np.ndarray:
    """The epochs of which rows are drawn, int64 [R], where `different` ones repeat; None: none does."""
    epochs = np.zeros_like(indices) if epochs is None else epochs
    return epochs if different is None else epochs % different


class MaskedRows:
    """Rows of which tokens are masked. `length` is that of the rows; see `MaskingSettings` for what is drawn."""

    def __init__(
        self, rows: Rows, settings: MaskingSettings, vocabulary: MaskVocabulary, length: int, stream: Stream
    ) -> None:
        if settings.whole_words and vocabulary.starts_word is None:
            raise ValueError("whole words: expected vocabulary.starts_word")
        self._rows, self._settings, self._vocabulary = rows, settings, vocabulary
        self._columns = settings.columns(length)
        self._draws = {purpose: stream.of(purpose) for purpose in ("selected", "read as", "random entry")}
        self.dropped_tokens = rows.dropped_tokens

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]: [R, T] for tokens, [R, P] for what is predicted."""
        drawn = epochs_drawn(indices, epochs, self._settings.maskings)
        batch = self._rows.batch(indices, drawn)
        tokens_RT, segments_RT = batch[TOKENS], batch[SEGMENTS]
        selected_RT = self._selected(tokens_RT, segments_RT, indices, drawn)
        columns_RP = np.argsort(~selected_RT, axis=1, kind="stable")[:, : self._columns]
        counts_R = selected_RT.sum(axis=1)
        predicted_RP = np.arange(self._columns) < counts_R[:, None]
        targets_RP = np.take_along_axis(tokens_RT, columns_RP, axis=1)
        read_RP = np.where(predicted_RP, self._read(targets_RP, indices, drawn), targets_RP)
        read_RT = tokens_RT.copy()
        np.put_along_axis(read_RT, columns_RP, read_RP, axis=1)
        others = {name: array for name, array in batch.items() if name not in (TARGETS, WEIGHTS)}
        return others | {
            TOKENS: read_RT,
            PREDICTED: np.where(predicted_RP, columns_RP, 0).astype(np.int32),
            PREDICTED_TARGETS: np.where(predicted_RP, targets_RP, 0).astype(np.int32),
            PREDICTED_WEIGHTS: predicted_RP.astype(np.float32),
        }

    def _read(self, targets_RP: np.ndarray, indices: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """What the model reads where these tokens were, int32 [R, P]."""
        settings, vocabulary, P = self._settings, self._vocabulary, targets_RP.shape[1]
        how_RP = self._draws["read as"].uniform(indices, drawn, P)
        entries_RP = below(self._draws["random entry"].uniform(indices, drawn, P), vocabulary.entries)
        read_RP = np.where(how_RP < settings.masked + settings.random, entries_RP, targets_RP)
        return np.where(how_RP < settings.masked, vocabulary.mask, read_RP).astype(np.int32)

    def _selected(
        self, tokens_RT: np.ndarray, segments_RT: np.ndarray, indices: np.ndarray, drawn: np.ndarray
    ) -> np.ndarray:
        """Which tokens are selected, bool [R, T]: the share of the row's tokens, at least one, at most P.

        As in BERT's create_pretraining_data.py, special tokens count in the row but are never selected.
        """
        candidates_RT = (segments_RT > 0) & ~np.isin(tokens_RT, self._vocabulary.special)
        wanted_R = np.rint(self._settings.share * (segments_RT > 0).sum(axis=1)).astype(np.int64)
        wanted_R = wanted_R.clip(1, self._columns)
        draws_RT = self._draws["selected"].uniform(indices, drawn, tokens_RT.shape[1])
        if self._settings.whole_words:
            return _whole_words(draws_RT, candidates_RT, self._starts(tokens_RT, segments_RT, candidates_RT), wanted_R)
        order_RT = np.argsort(np.where(candidates_RT, draws_RT, 2.0), axis=1)
        wanted_R = np.minimum(wanted_R, candidates_RT.sum(axis=1))
        selected_RT = np.zeros_like(candidates_RT)
        np.put_along_axis(selected_RT, order_RT, np.arange(order_RT.shape[1]) < wanted_R[:, None], axis=1)
        return selected_RT

    def _starts(self, tokens_RT: np.ndarray, segments_RT: np.ndarray, candidates_RT: np.ndarray) -> np.ndarray:
        """Where a word, or the part of it that is in the row, begins, bool [R, T]."""
        assert self._vocabulary.starts_word is not None
        first_RT = np.ones_like(candidates_RT)
        first_RT[:, 1:] = ~candidates_RT[:, :-1] | (segments_RT[:, 1:] != segments_RT[:, :-1])
        return candidates_RT & (first_RT | self._vocabulary.starts_word[tokens_RT])


def _whole_words(
    draws_RT: np.ndarray, candidates_RT: np.ndarray, starts_RT: np.ndarray, wanted_R: np.ndarray
) -> np.ndarray:
    """Words in random order are selected until a row has as many tokens as wanted; one that is too long is left out."""
    R, T = draws_RT.shape
    columns = np.arange(T)
    word_RT = np.maximum.accumulate(np.where(starts_RT, columns, 0), axis=1)  # the column where its word begins
    rows_RT = np.broadcast_to(np.arange(R)[:, None], (R, T))
    sizes_RT = np.bincount((rows_RT * T + word_RT)[candidates_RT], minlength=R * T).reshape(R, T)
    order_RT = np.argsort(np.where(starts_RT, draws_RT, 2.0), axis=1)  # words in random order, then other columns
    taken_RT, totals_R = np.zeros_like(candidates_RT), np.zeros(R, np.int64)
    for rank in range(int(starts_RT.sum(axis=1).max(initial=0))):
        here_R = order_RT[:, rank]
        size_R = sizes_RT[np.arange(R), here_R]
        fits_R = (size_R > 0) & (totals_R + size_R <= wanted_R)
        taken_RT[np.arange(R), here_R] = fits_R
        totals_R += np.where(fits_R, size_R, 0)
        if (totals_R == wanted_R).all():
            break
    return candidates_RT & np.take_along_axis(taken_RT, word_RT, axis=1)


class FirstTokenRows:
    """Rows that begin with a token of their own, such as [CLS], in the segment of the one behind it.

    `rows` are one token shorter. As in RoBERTa's released code, every row of text begins so, wherever it was cut.
    """

    def __init__(self, rows: Rows, token: int) -> None:
        self._rows, self._token = rows, token
        self.dropped_tokens = rows.dropped_tokens

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rows with these indices, int64 [R]: tokens, positions and segments, [R, T]."""
        batch = self._rows.batch(indices, epochs)
        segments_RT, positions_RT = batch[SEGMENTS], batch[POSITIONS]
        later_RT = positions_RT + (segments_RT == segments_RT[:, :1]).astype(np.int32)
        return {
            TOKENS: _before(self._token, batch[TOKENS]),
            POSITIONS: _before(0, np.where(segments_RT > 0, later_RT, 0)),
            SEGMENTS: np.concatenate([segments_RT[:, :1], segments_RT], axis=1),
        }


def _before(first: int, values_RT: np.ndarray) -> np.ndarray:
    return np.pad(values_RT, ((0, 0), (1, 0)), constant_values=first)
