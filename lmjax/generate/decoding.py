"""The compiled part of decoding: a prefill, then one loop over tokens with an explicit key-value cache.

In: left-padded rows of tokens, padding being segment 0. Out: a `Decoding`, which `advance` continues. A row's tokens
depend on its prompt, the seed and its index, not on the other rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.generate.sampling import SamplingSettings, draw, penalise_repetition
from lmjax.model.cache import Cache
from lmjax.model.language_model import LanguageModel
from lmjax.model.sharding import BoundMesh, bound_mesh, constrain, logical_sharding
from lmjax.parallel.chips import device_peak
from lmjax.settings import ComputeSettings

LENGTH_STEP = 64  # lengths are rounded up to a multiple of this
GATHERED_SHARE = 0.25  # of a device's memory, for matrices that sampling holds whole beside what training holds


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("cache", "logits", "seen", "key", "slot", "position", "produced", "done", "eos"),
        *("limits", "tokens", "log_probs", "top_tokens", "top_probabilities"),
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Decoding:
    """The state of a batch during decoding. N is the most tokens that can be produced."""

    cache: Cache
    logits: jax.Array  # [B, V] float32: of the next token
    seen: jax.Array  # [B, V] bool: tokens that the row contains; [B, 0] without a repetition penalty
    key: jax.Array
    slot: jax.Array  # the cache's index of the next token
    position: jax.Array  # [B]: of the next token
    produced: jax.Array  # [B]: tokens produced so far
    done: jax.Array  # [B] bool
    eos: jax.Array  # the tokens that end a row: one, or [E]
    limits: jax.Array  # [B]: the most tokens that each row may produce
    tokens: jax.Array  # [B, N] int32
    log_probs: jax.Array  # [B, N] float32
    top_tokens: jax.Array  # [B, N, top] int32
    top_probabilities: jax.Array  # [B, N, top] float32

    def repeated(self, times: int) -> Decoding:
        """The state with every row so many times; its copies are consecutive."""
        arrays = ("tokens", "log_probs", "top_tokens", "top_probabilities")
        per_row = ("logits", "seen", "position", "produced", "done", "limits", *arrays)
        rows = {name: jnp.repeat(getattr(self, name), times, axis=0) for name in per_row}
        return dataclasses.replace(self, cache=self.cache.repeated(times), **rows)


def start_traced(
    model: LanguageModel,
    params: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    limits_B: jax.Array,
    key: jax.Array,
    eos: jax.Array,
    *,
    settings: SamplingSettings,
    vocab: int,
    most: int,
) -> Decoding:
    """Reads the left-padded prompts. `most` limits the tokens to produce; `vocab` is the tokenizer's size."""
    decoder, params = unrolled(model, params)
    B, T = tokens_BT.shape
    positions = jnp.maximum(jnp.cumsum(segments_BT != 0, axis=1) - 1, 0).astype(jnp.int32)
    cache = decoder.empty_cache(B, T + most)
    hidden, cache = decoder.extend(params, cache, tokens_BT, positions, segments_BT, 0)
    seen = jnp.zeros((B, 0), bool)
    if settings.repetition_penalty != 1.0:
        rows_B1 = jnp.arange(B)[:, None]
        seen = jnp.zeros((B, params["tokens"].shape[0]), bool).at[rows_B1, tokens_BT].max(segments_BT != 0)
    return Decoding(
        cache=cache,
        logits=decoder.project(params, hidden[:, -1:], vocab)[:, 0],
        seen=seen,
        key=key,
        slot=jnp.int32(T),
        position=positions[:, -1] + 1,
        eos=eos,
        **nothing_produced(limits_B, most, min(settings.top, vocab)),
    )


def nothing_produced(limits_B: jax.Array, most: int, top: int) -> dict[str, jax.Array]:
    """The fields of a `Decoding` that count and hold what is produced, before the first of `most` tokens."""
    B = len(limits_B)
    return {
        "produced": jnp.zeros(B, jnp.int32),
        "done": limits_B <= 0,
        "limits": limits_B,
        "tokens": jnp.zeros((B, most), jnp.int32),
        "log_probs": jnp.zeros((B, most), jnp.float32),
        "top_tokens": jnp.zeros((B, most, top), jnp.int32),
        "top_probabilities": jnp.zeros((B, most, top), jnp.float32),
    }


def advance_traced(
    model: LanguageModel, params: Any, decoding: Decoding, count: jax.Array, *, settings: SamplingSettings, vocab: int
) -> Decoding:
    """Produces up to `count` more tokens per row, in one loop that ends when every row is done."""
    decoder, params = unrolled(model, params)

    def unfinished(carry: tuple[jax.Array, Decoding]) -> jax.Array:
        i, state = carry
        return (i < count) & ~state.done.all()

    def one(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        i, state = carry
        return i + 1, _one_token(decoder, params, state, settings, vocab)

    return jax.lax.while_loop(unfinished, one, (jnp.int32(0), decoding))[1]


start = jax.jit(start_traced, static_argnames=("model", "settings", "vocab", "most"))
advance = jax.jit(advance_traced, static_argnames=("model", "settings", "vocab"), donate_argnames=("decoding",))


def unrolled(model: LanguageModel, params: Any) -> tuple[LanguageModel, Any]:
    """The model with unrolled layers and matrices in the compute dtype, so that no token slices or casts them."""
    params = model.unstacked(params) if model.compute.scan_layers else params
    compute = ComputeSettings(dtype=model.compute.dtype, scan_layers=False)
    matrices = jax.tree.map(lambda p: p.astype(model.dtype) if p.ndim > 1 else p, params)
    return dataclasses.replace(model, compute=compute), matrices


@contextmanager
def gathered(model: LanguageModel, params: Any, rows: int) -> Iterator[tuple[LanguageModel, Any]]:
    """`unrolled`, laid out for decoding so many rows: "fsdp" cuts no matrix of the bound mesh any more.

    In this context they are gathered once, in the compute dtype, where every token would gather them again. Where that
    takes more than GATHERED_SHARE of a device's memory, they stay as they are. `start` and `advance` must be traced
    anew in it, which a jit that has seen their shapes does not do: use `start_traced` and `advance_traced`.
    """
    decoder, matrices = unrolled(model, params)
    bound = bound_mesh()
    if bound is None or not _fits_whole(matrices, bound):
        yield decoder, matrices
        return
    settings, vocab = decoder.settings, params["tokens"].shape[0]
    divided = (settings.attention.heads, settings.kv_heads, settings.feed_forward_width)
    own = bound.for_decoding(rows, divided, vocab)
    with logical_sharding(own.mesh, own.rules):

        def whole(names: tuple[str | None, ...], matrix: jax.Array) -> jax.Array:
            return constrain(matrix, *names)

        yield decoder, jax.tree.map(whole, decoder.logical_axes(), matrices, is_leaf=lambda node: type(node) is tuple)


def _fits_whole(matrices: Any, bound: BoundMesh) -> bool:
    peak = device_peak(bound.mesh.devices.flat[0].device_kind)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(matrices)) / bound.size("heads")
    return peak is None or size * peak.devices <= GATHERED_SHARE * peak.memory


def ready(model: Any, params: Any) -> tuple[Any, Any]:
    """`unrolled`, once for all calls of `start` and `advance` instead of in every call."""
    decoder = dataclasses.replace(model, compute=ComputeSettings(dtype=model.compute.dtype, scan_layers=False))
    unchanged = not model.compute.scan_layers and model.dtype == jnp.float32
    return decoder, params if unchanged else _unrolled_params(model, params)


@functools.partial(jax.jit, static_argnums=0)
def _unrolled_params(model: LanguageModel, params: Any) -> Any:
    return unrolled(model, params)[1]


def compiled_settings(settings: SamplingSettings) -> SamplingSettings:
    """The settings that the compiled program depends on; the seed and what ends a row are reset."""
    return dataclasses.replace(settings, seed=0, stop=(), ends=(), max_tokens=1, beyond_context="stop")


def read_token(
    decoder: LanguageModel, params: Any, state: Decoding, token_B: jax.Array, live_B: jax.Array, vocab: int
) -> Decoding:
    """The state after each live row's next token is in the cache, with the logits of the one that follows."""
    hidden, cache = decoder.extend(
        params, state.cache, token_B[:, None], state.position[:, None], live_B.astype(jnp.int32)[:, None], state.slot
    )
    return dataclasses.replace(
        state,
        cache=cache,
        logits=decoder.project(params, hidden, vocab)[:, 0],
        slot=state.slot + 1,
        position=jnp.minimum(state.position + 1, decoder.settings.context - 1),
    )


def _one_token(
    decoder: LanguageModel, params: Any, state: Decoding, settings: SamplingSettings, vocab: int
) -> Decoding:
    rows = jnp.arange(state.done.shape[0])
    logits = state.logits / (settings.temperature or 1.0)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    choices = logits
    if settings.repetition_penalty != 1.0:
        choices = penalise_repetition(logits, state.seen, settings.repetition_penalty)
    keys = jax.vmap(lambda row, i: jax.random.fold_in(jax.random.fold_in(state.key, row), i))(rows, state.produced)
    token = draw(choices, keys, settings)
    live = ~state.done
    index = (rows, jnp.minimum(state.produced, state.tokens.shape[1] - 1))

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        live_rows = live.reshape(-1, *[1] * (value.ndim - 1))
        return array.at[index].set(jnp.where(live_rows, value, array[index]))

    top_log_probs, top_tokens = jax.lax.top_k(log_probs, state.top_tokens.shape[-1])
    produced = state.produced + live
    done = state.done | (token[:, None] == state.eos.reshape(1, -1)).any(axis=1) | (produced >= state.limits)
    seen = state.seen.at[rows, token].set(True) if settings.repetition_penalty != 1.0 else state.seen
    return dataclasses.replace(
        read_token(decoder, params, state, token, live, vocab),
        seen=seen,
        produced=produced,
        done=done,
        tokens=put(state.tokens, token),
        log_probs=put(state.log_probs, log_probs[rows, token]),
        top_tokens=put(state.top_tokens, top_tokens),
        top_probabilities=put(state.top_probabilities, jnp.exp(top_log_probs)),
    )


def produced_tokens(decoding: Decoding) -> list[list[int]]:
    """The tokens that each row has produced so far."""
    tokens_BN, produced_B = jax.device_get((decoding.tokens, decoding.produced))
    return [row[:count].tolist() for row, count in zip(tokens_BN, produced_B, strict=True)]
