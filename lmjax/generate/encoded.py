"""Texts that an encoder-decoder writes for its inputs: the encoder runs once, the decoder with a cache.

In: inputs as token ids. Out: the tokens written for each. What `decoding.start` is for prompts, `start_encoded` is for
inputs; `decoding.advance` continues both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import INPUT_POSITIONS, INPUT_SEGMENTS, INPUTS, Batch
from lmjax.data.seq2seq_rows import START
from lmjax.generate.decoding import (
    LENGTH_STEP,
    Decoding,
    advance,
    compiled_settings,
    produced_tokens,
    ready,
    unrolled,
)
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.encoder_decoder import EncoderDecoder


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab", "most"))
def start_encoded(
    model: EncoderDecoder,
    params: Any,
    inputs: Batch,
    limits_B: jax.Array,
    key: jax.Array,
    eos: jax.Array,
    *,
    settings: SamplingSettings,
    vocab: int,
    most: int,
) -> Decoding:
    """Encodes the inputs, and reads the start token. `most` limits the tokens to produce; see `decoding.start`."""
    decoder: Any = model
    decoder, params = unrolled(decoder, params)
    B, top = len(limits_B), min(settings.top, vocab)
    tokens, first = jnp.full((B, 1), START, jnp.int32), jnp.zeros((B, 1), jnp.int32)
    cache = decoder.start_cache(params, inputs, 1 + most)
    hidden, cache = decoder.extend(params, cache, tokens, first, first + 1, 0)
    seen = jnp.zeros((B, params["tokens"].shape[0] if settings.repetition_penalty != 1.0 else 0), bool)
    return Decoding(
        cache=cache,
        logits=decoder.project(params, hidden, vocab)[:, 0],
        seen=seen,
        key=key,
        slot=jnp.int32(1),
        position=jnp.ones(B, jnp.int32),
        produced=jnp.zeros(B, jnp.int32),
        done=limits_B <= 0,
        eos=eos,
        limits=limits_B,
        tokens=jnp.zeros((B, most), jnp.int32),
        log_probs=jnp.zeros((B, most), jnp.float32),
        top_tokens=jnp.zeros((B, most, top), jnp.int32),
        top_probabilities=jnp.zeros((B, most, top), jnp.float32),
    )


def write(
    model: EncoderDecoder,
    params: Any,
    inputs: Sequence[np.ndarray],
    *,
    eos: int,
    vocab: int,
    settings: SamplingSettings,
    rows: int = 64,
    between: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The tokens written for each of the inputs, int32 [n] each, at most `settings.max_tokens`; `eos` ends a text.

    `rows` are read at once, the longest inputs together; `between` is called before each batch.
    """
    decoder: Any = model
    decoder, matrices = ready(decoder, params)
    order = np.argsort([-len(text) for text in inputs], kind="stable")
    found: dict[int, list[int]] = {}
    static = compiled_settings(settings)
    for begin in range(0, len(order), rows):
        between()
        numbers = order[begin : begin + rows]
        batch = padded_inputs([inputs[number] for number in numbers], rows)
        limits = jnp.asarray((np.arange(rows) < len(numbers)) * settings.max_tokens, jnp.int32)
        key, ends = jax.random.fold_in(jax.random.key(settings.seed), begin), jnp.array([eos], jnp.int32)
        fixed = {"settings": static, "vocab": vocab}
        state = start_encoded(decoder, matrices, batch, limits, key, ends, **fixed, most=settings.max_tokens)
        state = advance(decoder, matrices, state, jnp.int32(settings.max_tokens), **fixed)
        found |= dict(zip(numbers.tolist(), produced_tokens(state), strict=False))
    return [found[number] for number in range(len(inputs))]


def padded_inputs(texts: Sequence[Sequence[int] | np.ndarray], rows: int) -> Batch:
    """The encoder's fields of texts, [rows, S], padded at their ends; S is a multiple of LENGTH_STEP."""
    width = max(1, -(-max(map(len, texts)) // LENGTH_STEP)) * LENGTH_STEP
    inputs, segments = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    for row, text in enumerate(texts):
        inputs[row, : len(text)], segments[row, : len(text)] = text, 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), inputs.shape)
    return {INPUTS: inputs, INPUT_POSITIONS: positions, INPUT_SEGMENTS: segments}
