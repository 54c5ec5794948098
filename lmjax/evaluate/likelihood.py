"""The log-probability of every token of a text, also of one that is longer than the model's context.

In: a model, its parameters and sequences of token ids. Out: for each sequence the log-probabilities of its tokens but
the first, each given the tokens before it. A sequence is read through windows of the context. Between two of them the
reader moves on by `stride` tokens, which the next window predicts; what is before them in the window is context alone.
So with a stride of the whole context a token has 1 to context tokens before it, and with a stride of 1 as many as the
model holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, Batch
from lmjax.errors import require
from lmjax.model.language_model import LanguageModel
from lmjax.objective.log_probs import token_log_probs
from lmjax.parallel.placement import ROWS, batch_sharding, jit_eval, place_batch

SHORTEST = 32  # tokens: the lengths of rows are this, doubled until the context, so that few programs are compiled
BATCH_TOKENS = 8192  # of a batch on each device along the rows,
BATCH_TOKENS_TOP = 1024  # and where the likeliest tokens are wanted, for which all logits of a batch exist at once
SEQUENCES_AT_ONCE = 1024  # whose windows are sorted by length together


class Window(NamedTuple):
    """A row of a batch: tokens `begin` to `end` - 1 are read, each to predict the next; those from `first` on count."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int) -> list[Window]:
    """The windows in which so many tokens after the first of a sequence are predicted, each once."""
    first = min(tokens, context)
    found = [Window(0, 0, first)] if tokens else []
    for done in range(first, tokens, stride):
        end = min(done + stride, tokens)
        found.append(Window(end - context, done, end))
    return found


class TokenProbs(NamedTuple):
    """Natural logarithms, float64, of what the model says of each of T tokens, and of the K likeliest in its place."""

    log_probs: np.ndarray  # [T]
    top_ids: np.ndarray  # [T, K], the likeliest first
    top_log_probs: np.ndarray  # [T, K]


class Likelihood:
    """Reads sequences with one model on one mesh."""

    def __init__(
        self,
        model: LanguageModel,
        params: Any,
        mesh: Mesh,
        *,
        entries: int | None = None,
        stride: int | None = None,
        top: int = 0,
        context: int | None = None,
    ) -> None:
        """`entries` is the tokenizer's size, `stride` by default context / 2; `top` likeliest tokens are returned.

        `context` is by default, and at most, the model's. Raises UserError for a model that sees later tokens, a
        context or a stride out of bounds, and a `top` beyond the vocabulary.
        """
        model.require_causal("the probability of a text")
        most = model.settings.context
        context = most if context is None else context
        require(1 <= context <= most, "--context", context, f"1 to the model's {most} tokens", "change it")
        stride = max(1, context // 2) if stride is None else stride
        require(1 <= stride <= context, "--stride", stride, f"1 to the context of {context} tokens", "change it")
        vocabulary = entries or model.settings.vocab_size or 0
        require(0 <= top <= vocabulary, "--top", top, f"at most the {vocabulary:,} tokens", "lower it")
        self._params, self._mesh, self.stride, self.context = params, mesh, stride, context
        self._top, self._tokens = top, BATCH_TOKENS_TOP if top else BATCH_TOKENS
        self._devices = mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]

        def read(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            hidden = model.hidden(params, batch).hidden
            head, chunking = model.head(params), model.chunking
            found = token_log_probs(hidden, head, batch[TARGETS], valid_vocab=entries, chunking=chunking)[0]
            if not top:
                none = jnp.zeros((*found.shape, 0))
                return found, none.astype(jnp.int32), none
            log_p_BTV = jax.nn.log_softmax(model.project(params, hidden, entries))
            likeliest, ids = jax.lax.top_k(log_p_BTV, top)
            return found, ids, likeliest

        self._read = jit_eval(read, mesh, params, batch=batch_sharding(mesh, ROWS))

    def of(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> Iterator[TokenProbs]:
        """What the model says of the tokens of each sequence after its first, in their order."""
        remaining = iter(sequences)
        while some := [np.asarray(ids, np.int64) for ids in itertools.islice(remaining, SEQUENCES_AT_ONCE)]:
            sizes = [max(0, len(ids) - 1) for ids in some]
            found = [self._empty(size) for size in sizes]
            rows = [(n, own) for n, size in enumerate(sizes) for own in windows(size, self.context, self.stride)]
            rows.sort(key=lambda row: row[1].end - row[1].begin)
            for length, bucket in itertools.groupby(rows, key=lambda row: self._length(row[1])):
                self._fill(found, some, list(bucket), length)
            yield from found

    def _empty(self, tokens: int) -> TokenProbs:
        shape = (tokens, self._top)
        return TokenProbs(np.zeros(tokens), np.zeros(shape, np.int32), np.zeros(shape))

    def _length(self, window: Window) -> int:
        length = SHORTEST
        while length < window.end - window.begin:
            length *= 2
        return min(length, self.context)

    def _fill(
        self, found: list[TokenProbs], sequences: list[np.ndarray], rows: list[tuple[int, Window]], length: int
    ) -> None:
        """Puts what is said of windows, in batches of rows of `length` tokens, where it belongs."""
        most = self._devices * max(1, self._tokens // length)
        for at in range(0, len(rows), most):
            part = rows[at : at + most]
            size = self._devices
            while size < len(part):
                size = min(2 * size, most)
            read = jax.device_get(self._read(self._params, self._batch(sequences, part, size, length)))
            for row, (number, window) in enumerate(part):
                predicted = slice(window.first - window.begin, window.end - window.begin)
                for own, batch in zip(found[number], read, strict=True):
                    own[window.first : window.end] = batch[row, predicted]

    def _batch(self, sequences: list[np.ndarray], rows: list[tuple[int, Window]], size: int, length: int) -> Batch:
        tokens, targets, segments = np.zeros((3, size, length), np.int32)
        for row, (number, window) in enumerate(rows):
            ids, own = sequences[number][window.begin : window.end + 1], window.end - window.begin
            tokens[row, :own], targets[row, :own], segments[row, :own] = ids[:-1], ids[1:], 1
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
        fields = {TOKENS: tokens, TARGETS: targets, POSITIONS: positions, SEGMENTS: segments}
        return place_batch(lambda part: {name: field[part] for name, field in fields.items()}, size, self._mesh, ROWS)
