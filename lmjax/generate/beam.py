"""Beam search: the likeliest continuations of prompts, found by keeping the K best beginnings at every step.

Every step extends the B x K beams of B prompts by all tokens and keeps the K best of each prompt. A hypothesis is a
beam that an end token or the limit of tokens ended. Its score is the sum of its log-probabilities, divided by
length^length_penalty, as in Hugging Face transformers (`GenerationMixin._beam_search`), whose choices it makes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import require
from lmjax.fields import check_fields
from lmjax.generate.decode import Completion, before, begin, completion, ending_of, ids_of
from lmjax.generate.decoding import Decoding, read_token, ready, unrolled
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.cache import Cache
from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.model.language_model import LanguageModel
from lmjax.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class BeamSettings:
    """How a beam search goes, and what it returns."""

    beams: int = 4
    max_tokens: int = 128
    length_penalty: float = 1.0  # the power of the length; 0 is none, more prefers longer texts
    n_best: int = 1  # hypotheses to return for each prompt
    # When a prompt with K hypotheses is done: at once; when its best beam would not enter them if it ended now; or when
    # it could enter them at no length up to the limit. The reference library says True, False and "never".
    early_stopping: Literal["always", "likely", "never"] = "likely"
    ends: tuple[int, ...] = ()  # tokens that end a text, in addition to the tokenizer's end of text

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.beams > 0, "beams", self.beams, "a number above 0", "use 1 for greedy decoding")
        require(self.max_tokens > 0, "max_tokens", self.max_tokens, "a number above 0", "use at least 1")
        steep, fix = abs(self.length_penalty) <= 10, "use 1 for the mean, 0 for none"
        require(steep, "length_penalty", self.length_penalty, "a power from -10 to 10", fix)
        fits = 0 < self.n_best <= self.beams
        require(fits, "n_best", self.n_best, f"1 to beams = {self.beams}", "ask for fewer, or search with more beams")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["scores", "tokens", "log_probs", "lengths"], meta_fields=[]
)
@dataclass(frozen=True)
class Hypotheses:
    """The K best of each prompt, the best first. N is the most tokens that can be produced."""

    scores: jax.Array  # [B, K] float32; -inf where there is none
    tokens: jax.Array  # [B, K, N] int32; an end token is the last
    log_probs: jax.Array  # [B, K, N] float32
    lengths: jax.Array  # [B, K] int32


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows", "totals", "found", "done"], meta_fields=[])
@dataclass(frozen=True)
class _Search:
    rows: Decoding  # B x K rows; those of a prompt stand together, its likeliest first
    totals: jax.Array  # [B, K]: of each row, the sum of its log-probabilities; -inf for a row that nothing continues
    found: Hypotheses
    done: jax.Array  # [B] bool


def beam_search(
    model: LanguageModel | EncoderDecoder,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: BeamSettings = BeamSettings(),
) -> list[list[Completion]]:
    """Of each prompt its `n_best` continuations, the best first; fewer where the vocabulary has no more.

    Raises UserError for a prompt that fills the model's context, and for a model whose attention is not causal.
    """
    return searched(model, params, tokenizer, ids_of(model, tokenizer, prompts), settings)


def searched(
    model: LanguageModel | EncoderDecoder,
    params: Any,
    tokenizer: Tokenizer,
    ids: Sequence[list[int]],
    settings: BeamSettings = BeamSettings(),
) -> list[list[Completion]]:
    """`beam_search` for prompts that are tokens, at least one each."""
    if not ids:
        return []
    model.require_causal("generating text")
    model, params = ready(model, params)
    vocab, most = tokenizer.vocab_size, settings.max_tokens
    plain = SamplingSettings(max_tokens=most, ends=settings.ends)
    ends = sorted({tokenizer.eos_id, *settings.ends})
    key = jax.random.key(0)  # nothing is drawn
    decoding = begin(model, params, vocab, ids, [most] * len(ids), key, jnp.array(ends, jnp.int32), plain)
    options = {"beams": settings.beams, "early_stopping": settings.early_stopping, "vocab": vocab}
    found = search(model, params, decoding, jnp.float32(settings.length_penalty), **options)
    return _completions(tokenizer, [before(model, row) for row in ids], found, plain, ends, settings.n_best)


@functools.partial(jax.jit, static_argnames=("model", "beams", "early_stopping", "vocab"))
def search(
    model: LanguageModel,
    params: Any,
    decoding: Decoding,
    length_penalty: jax.Array,
    *,
    beams: int,
    early_stopping: str,
    vocab: int,
) -> Hypotheses:
    """The hypotheses of the B prompts that `decoding` has read, in one loop that ends when every prompt is done."""
    decoder, params = unrolled(model, params)
    (B, N), K = decoding.tokens.shape, beams
    none_BK = jnp.full((B, K), -jnp.inf)
    found = Hypotheses(
        none_BK, jnp.zeros((B, K, N), jnp.int32), jnp.zeros((B, K, N), jnp.float32), jnp.zeros((B, K), jnp.int32)
    )
    start = _Search(decoding.repeated(K), none_BK.at[:, 0].set(0.0), found, decoding.done)
    one = functools.partial(_one_step, decoder, params, length_penalty, early_stopping, vocab)
    return jax.lax.while_loop(lambda state: ~state.done.all(), one, start).found


def _completions(
    tokenizer: Tokenizer,
    ids: Sequence[list[int]],
    found: Hypotheses,
    plain: SamplingSettings,
    ends: Sequence[int],
    n_best: int,
) -> list[list[Completion]]:
    """The texts of each prompt's best."""
    scores, all_tokens, all_log_probs, lengths = jax.device_get(
        (found.scores, found.tokens, found.log_probs, found.lengths)
    )
    results: list[list[Completion]] = [[] for _ in ids]
    for row, rank in np.argwhere(scores[:, :n_best] > -np.inf).tolist():
        length = lengths[row, rank]
        tokens, none = all_tokens[row, rank, :length], np.zeros((length, 0))
        ending = ending_of(tokens.tolist(), ends, plain.max_tokens)
        text = completion(tokenizer, ids[row], plain, ending, tokens, all_log_probs[row, rank], none, none)
        results[row].append(dataclasses.replace(text, score=float(scores[row, rank])))
    return results


def _one_step(
    decoder: LanguageModel, params: Any, penalty: jax.Array, early_stopping: str, vocab: int, state: _Search
) -> _Search:
    rows, (B, K) = state.rows, state.totals.shape
    limits_B, produced_B = rows.limits[::K], rows.produced[::K] + 1
    candidates, parent_BC, token_BC = _candidates(state, produced_B)
    totals_BC = candidates.scores
    at_limit_B1 = (produced_B >= limits_B)[:, None]
    ended_BC = (token_BC[:, :, None] == rows.eos.reshape(1, 1, -1)).any(axis=-1) | at_limit_B1
    power_B1 = produced_B.astype(jnp.float32)[:, None] ** penalty
    enters_BC = ended_BC & (jnp.arange(totals_BC.shape[1]) < K)[None] & ~state.done[:, None]
    scored = dataclasses.replace(candidates, scores=jnp.where(enters_BC, totals_BC / power_B1, -jnp.inf))
    found = _best(jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.found, scored), K)
    open_BC = dataclasses.replace(candidates, scores=jnp.where(ended_BC, -jnp.inf, totals_BC))
    kept_BK = jax.lax.top_k(open_BC.scores, K)[1]
    kept = _taken(open_BC, kept_BK)
    parent_BK, token_BK = (jnp.take_along_axis(x, kept_BK, axis=1) for x in (parent_BC, token_BC))
    rows = dataclasses.replace(
        rows,
        cache=_reordered(rows.cache, (jnp.arange(B)[:, None] * K + parent_BK).reshape(-1)),
        tokens=kept.tokens.reshape(B * K, -1),
        log_probs=kept.log_probs.reshape(B * K, -1),
        produced=rows.produced + 1,
    )
    longest_B1 = limits_B.astype(jnp.float32)[:, None] ** penalty
    bound_B1 = kept.scores[:, :1] / (jnp.maximum(power_B1, longest_B1) if early_stopping == "never" else power_B1)
    full_B = (found.scores > -jnp.inf).all(axis=1)
    hopeless_B = full_B if early_stopping == "always" else full_B & (bound_B1 <= found.scores[:, -1:])[:, 0]
    done_B = state.done | at_limit_B1[:, 0] | hopeless_B
    rows = read_token(decoder, params, rows, token_BK.reshape(-1), jnp.ones(B * K, bool), vocab)
    return _Search(rows, kept.scores, found, done_B)


def _candidates(state: _Search, produced_B: jax.Array) -> tuple[Hypotheses, jax.Array, jax.Array]:
    """The C likeliest beams with one more token, scored by their totals; the beam [B, C] of each and its token.

    At most one per beam and end token has ended, so that K others remain, if there are so many.
    """
    rows, (B, K) = state.rows, state.totals.shape
    log_probs_BKV = jax.nn.log_softmax(rows.logits, axis=-1).reshape(B, K, -1)
    V = log_probs_BKV.shape[-1]
    count = min((1 + rows.eos.size) * K, K * V)
    totals_BC, flat_BC = jax.lax.top_k((state.totals[:, :, None] + log_probs_BKV).reshape(B, -1), count)
    parent_BC, token_BC, place_B = flat_BC // V, flat_BC % V, produced_B - 1
    log_probs_BC = jnp.take_along_axis(log_probs_BKV.reshape(B, -1), flat_BC, axis=1)
    candidates = Hypotheses(
        totals_BC,
        _extended(rows.tokens.reshape(B, K, -1), parent_BC, token_BC, place_B),
        _extended(rows.log_probs.reshape(B, K, -1), parent_BC, log_probs_BC, place_B),
        jnp.broadcast_to(produced_B[:, None], totals_BC.shape),
    )
    return candidates, parent_BC, token_BC


def _reordered(cache: Cache, index_R: jax.Array) -> Cache:
    """The cache whose row r is row index[r] of this one. A cache of one row has no axis for it.

    What is kept of encoded inputs is the same for all beams of a prompt, and stays.
    """
    if index_R.size == 1:
        return cache
    layers = (
        dataclasses.replace(layer, keys=layer.keys[index_R], values=layer.values[index_R]) for layer in cache.layers
    )
    return dataclasses.replace(cache, layers=tuple(layers), segments=cache.segments[index_R])


def _extended(kept_BKN: jax.Array, parent_BC: jax.Array, new_BC: jax.Array, place_B: jax.Array) -> jax.Array:
    """[B, C, N]: of each candidate its parent's entries, and its new one behind them."""
    parents_BCN = jnp.take_along_axis(kept_BKN, parent_BC[:, :, None], axis=1)
    here_B1N = (jnp.arange(kept_BKN.shape[-1])[None] == place_B[:, None])[:, None]
    return jnp.where(here_B1N, new_BC[:, :, None], parents_BCN)


def _best(hypotheses: Hypotheses, count: int) -> Hypotheses:
    return _taken(hypotheses, jax.lax.top_k(hypotheses.scores, count)[1])


def _taken(hypotheses: Hypotheses, index_BK: jax.Array) -> Hypotheses:
    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index_BK if x.ndim == 2 else index_BK[:, :, None], axis=1)

    return jax.tree.map(take, hypotheses)
