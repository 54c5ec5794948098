"""The start of decoding for the inputs of an encoder-decoder: the encoder runs once, the decoder with a cache.

In: inputs as token ids. Out: a `Decoding`. What `decoding.start` is for prompts, `start_encoded` is for inputs;
`decoding.advance` and `beam.search` continue both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import INPUT_POSITIONS, INPUT_SEGMENTS, INPUTS, Batch
from lmjax.data.seq2seq_rows import START
from lmjax.generate.decoding import LENGTH_STEP, Decoding, nothing_produced, unrolled
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
    B = len(limits_B)
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
        eos=eos,
        **nothing_produced(limits_B, most, min(settings.top, vocab)),
    )


def padded_inputs(texts: Sequence[Sequence[int] | np.ndarray], rows: int) -> Batch:
    """The encoder's fields of texts, [rows, S], padded at their ends; S is a multiple of LENGTH_STEP."""
    width = max(1, -(-max(map(len, texts)) // LENGTH_STEP)) * LENGTH_STEP
    inputs, segments = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    for row, text in enumerate(texts):
        inputs[row, : len(text)], segments[row, : len(text)] = text, 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), inputs.shape)
    return {INPUTS: inputs, INPUT_POSITIONS: positions, INPUT_SEGMENTS: segments}
