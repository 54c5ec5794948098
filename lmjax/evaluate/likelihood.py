"""The log-probability of every token of a text, also of one that is longer than the model's context; and of endings.

In: a model, its parameters and sequences of token ids. Out: for each sequence the log-probabilities of its tokens but
the first, each given the tokens before it. A sequence is read through windows of the context. Between two of them the
reader moves on by `stride` tokens, which the next window predicts; what is before them in the window is context alone.
So with a stride of the whole context a token has 1 to context tokens before it, and with a stride of 1 as many as the
model holds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, Batch
from lmjax.errors import require
from lmjax.evaluate.endings import Ending, Group, Shape, arrays, batches, grouped
from lmjax.model.language_model import LanguageModel
from lmjax.objective.log_probs import token_log_probs
from lmjax.parallel.placement import ROWS, batch_sharding, jit_eval, place_rows

SHORTEST = 32  # tokens: the lengths of rows are this, doubled until the context, so that few programs are compiled
# of a batch on each device along the rows, by platform: a CPU's cores are busy with fewer, and less is rounded up
BATCH_TOKENS = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
BATCH_TOKENS_TOP = 1024  # where the likeliest tokens are wanted, for which all logits of a batch exist at once
FIRST_AT_ONCE = 8  # sequences; every part has twice as many as the one before, so that the first is there soon,
SEQUENCES_AT_ONCE = 1024  # up to this number, whose windows are sorted by length together
GROUPS_AT_ONCE = 256  # of endings, which are sorted by shape together
BEGINNING_AT_ONCE = 512  # tokens, whose attention scores exist at once

Item = TypeVar("Item")


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


def growing(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """The items in parts: a few, then twice as many each time, up to `most`."""
    remaining, size = iter(items), min(FIRST_AT_ONCE, most)
    while part := list(itertools.islice(remaining, size)):
        yield part
        size = min(2 * size, most)


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
        model.require_decoder("the probability of a text")
        most = model.settings.context
        context = most if context is None else context
        require(1 <= context <= most, "--context", context, f"1 to the model's {most} tokens", "change it")
        stride = max(1, context // 2) if stride is None else stride
        require(1 <= stride <= context, "--stride", stride, f"1 to the context of {context} tokens", "change it")
        vocabulary = entries or model.settings.vocab_size or 0
        require(0 <= top <= vocabulary, "--top", top, f"at most the {vocabulary:,} tokens", "lower it")
        self._params, self._mesh, self.stride, self.context = params, mesh, stride, context
        tokens = BATCH_TOKENS[model.platform]
        self._top, self._tokens, self._ending_tokens = top, min(tokens, BATCH_TOKENS_TOP) if top else tokens, 2 * tokens
        self._devices = mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]
        self._said = functools.partial(_said, model, entries, top)
        rows = batch_sharding(mesh, ROWS)

        def read(predicted: int, params: Any, batch: Batch) -> tuple[jax.Array, ...]:
            hidden = model.hidden(params, batch).hidden
            return self._said(params, hidden[:, -predicted:], batch[TARGETS][:, -predicted:])

        def endings(params: Any, batch: tuple[Batch, Batch]) -> tuple[jax.Array, ...]:
            return self._said(params, *_continued(model, params, *batch))

        whole = functools.partial(read, 0)
        self._first = jit_eval(whole, mesh, params, batch=rows)
        self._later = jit_eval(functools.partial(read, stride), mesh, params, batch=rows)
        self._endings = jit_eval(endings, mesh, params, batch=rows)

    def of(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> Iterator[TokenProbs]:
        """What the model says of the tokens of each sequence after its first, in their order.

        Raises UserError where that is no finite number.
        """
        for part in growing(sequences, SEQUENCES_AT_ONCE):
            some = [np.asarray(ids, np.int64) for ids in part]
            sizes = [max(0, len(ids) - 1) for ids in some]
            found = [self._empty(size) for size in sizes]
            rows = [(n, own) for n, size in enumerate(sizes) for own in windows(size, self.context, self.stride)]
            rows.sort(key=lambda row: self._shape(row[1]))
            for shape, bucket in itertools.groupby(rows, key=lambda row: self._shape(row[1])):
                self._fill(found, some, list(bucket), *shape)
            yield from map(_finite, found)

    def after(self, groups: Iterable[Sequence[Ending]]) -> Iterator[list[TokenProbs]]:
        """What the model says of the ends of sequences; what those of a group have in common is read once.

        A sequence has at most one token more than the context. Raises as `of` does.
        """
        remaining = iter(groups)
        while some := [grouped(endings) for endings in itertools.islice(remaining, GROUPS_AT_ONCE)]:
            found: list[list[TokenProbs]] = [[] for _ in some]
            for shape, numbers in batches(some, self._devices * self._ending_tokens):
                read = self._read_endings([some[number] for number in numbers], shape)
                for number, own in zip(numbers, read, strict=True):
                    found[number] = own
            yield from found

    def _empty(self, tokens: int) -> TokenProbs:
        shape = (tokens, self._top)
        return TokenProbs(np.zeros(tokens), np.zeros(shape, np.int32), np.zeros(shape))

    def _shape(self, window: Window) -> tuple[int, bool]:
        """The tokens of a row for a window, and whether it is one of the later ones, which have context alone first."""
        length = SHORTEST
        while length < window.end - window.begin:
            length *= 2
        return min(length, self.context), window.begin < window.first

    def _fill(
        self,
        found: list[TokenProbs],
        sequences: list[np.ndarray],
        rows: list[tuple[int, Window]],
        length: int,
        later: bool,
    ) -> None:
        """Puts what is said of windows, in batches of rows of `length` tokens, where it belongs."""
        most = max(1, self._tokens // length)
        read, before = (self._later, length - self.stride) if later else (self._first, 0)
        for at in range(0, len(rows), self._devices * most):
            part = rows[at : at + self._devices * most]
            batch = _batch(sequences, part, self._rows(len(part), most), length)
            said = jax.device_get(read(self._params, place_rows(batch, self._mesh)))
            for row, (number, window) in enumerate(part):
                predicted = slice(window.first - window.begin - before, window.end - window.begin - before)
                for own, values in zip(found[number], said, strict=True):
                    own[window.first : window.end] = values[row, predicted]

    def _rows(self, count: int, most: int) -> int:
        """Rows of a batch for `count`: the same on all devices and a power of two on each, or the most."""
        rows = 1
        while rows * self._devices < count:
            rows = min(2 * rows, most)
        return rows * self._devices

    def _read_endings(self, groups: list[Group], shape: Shape) -> Iterator[list[TokenProbs]]:
        rows = self._rows(len(groups), max(1, self._ending_tokens // shape.tokens))
        batch = tuple(place_rows(part, self._mesh) for part in arrays(groups, shape, rows))
        log_probs, *top = jax.device_get(self._endings(self._params, batch))
        said = (np.asarray(log_probs, np.float64), *top)
        for row, group in enumerate(groups):
            places = ((row * shape.sequences + number, ending) for number, ending in enumerate(group.endings))
            ends = ((place, len(ids) - 1 - group.shared, count) for place, (ids, count) in places)
            found = (TokenProbs(*(values[place, end - count : end] for values in said)) for place, end, count in ends)
            yield [_finite(one) for one in found]


def _finite(found: TokenProbs) -> TokenProbs:
    wrong = found.log_probs[~np.isfinite(found.log_probs)]
    expected, fix = "finite numbers", "the training that wrote the checkpoint diverged: take an older one"
    require(not len(wrong), "log-probabilities of the model", wrong[:1].tolist(), expected, fix)
    return found


def _batch(sequences: list[np.ndarray], rows: list[tuple[int, Window]], size: int, length: int) -> Batch:
    tokens, targets, segments = np.zeros((3, size, length), np.int32)
    for row, (number, window) in enumerate(rows):
        ids, own = sequences[number][window.begin : window.end + 1], window.end - window.begin
        tokens[row, :own], targets[row, :own], segments[row, :own] = ids[:-1], ids[1:], 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return {TOKENS: tokens, TARGETS: targets, POSITIONS: positions, SEGMENTS: segments}


def _said(
    model: LanguageModel, entries: int | None, top: int, params: Any, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each target: its log-probability, and the likeliest tokens and theirs, [B, T, top] each."""
    if not top:
        head, chunking = model.head(params), model.chunking
        found = token_log_probs(hidden_BTD, head, targets_BT, valid_vocab=entries, chunking=chunking)[0]
        none = jnp.zeros((*found.shape, 0))
        return found, none.astype(jnp.int32), none
    log_p_BTV = jax.nn.log_softmax(model.project(params, hidden_BTD, entries))
    likeliest, ids = jax.lax.top_k(log_p_BTV, top)
    return jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0], ids, likeliest


def _continued(model: LanguageModel, params: Any, first: Batch, then: Batch) -> tuple[jax.Array, jax.Array]:
    """Hidden states and targets of the sequences that continue each row of `first`, [rows x sequences, rest, ...]."""
    B, S = first[TOKENS].shape
    _, N, T = then[TOKENS].shape
    cache = model.empty_cache(B, S + T)
    for at in range(0, S, BEGINNING_AT_ONCE):
        part = {name: array[:, at : at + BEGINNING_AT_ONCE] for name, array in first.items()}
        _, cache = model.extend(params, cache, part[TOKENS], part[POSITIONS], part[SEGMENTS], at)
    rest = {name: array.reshape(B * N, T) for name, array in then.items()}
    hidden, _ = model.extend(params, cache.repeated(N), rest[TOKENS], rest[POSITIONS], rest[SEGMENTS], S)
    return hidden, rest[TARGETS]
