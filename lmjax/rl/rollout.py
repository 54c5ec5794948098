"""Responses sampled from a policy, and their log-probabilities and values: pure functions.

In: prompts, [B, P]. Out: rows [B, P + N] of prompts padded on the left, whose last N columns hold the responses, padded
on the right, and arrays [B, N] over their tokens. Everything after a response's end-of-text is padding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.generate.decoding import advance_traced, gathered, start_traced
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.heads import ScalarModel, apply_scalar
from lmjax.model.language_model import LanguageModel
from lmjax.model.outputs import Auxiliary, Outputs
from lmjax.objective.log_probs import token_log_probs


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that a compiled program depends on."""

    size: int  # ids are 0 to size - 1; a model's table may have more rows
    end: int  # the end-of-text token


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows", "mask", "sampled", "finished"], meta_fields=[]
)
@dataclass(frozen=True)
class Rollout:
    """Sampled responses with their prompts."""

    rows: Batch  # tokens, positions and segments, [B, P + N]
    mask: jax.Array  # [B, N] float32: 1 on a response's tokens, end-of-text included
    sampled: jax.Array  # [B, N] float32: the sampler's log-probabilities, under its temperature
    finished: jax.Array  # [B] bool: whether a response ends with end-of-text

    @property
    def responses(self) -> jax.Array:
        """[B, N] int32: the response tokens, 0 at padding."""
        return self.rows[TOKENS][:, -self.mask.shape[1] :]


class Readings(NamedTuple):
    """A policy's, and a value model's, outputs for sampled responses, [B, N]."""

    log_probs: jax.Array  # of each token
    entropy: jax.Array  # of the distribution that each token was sampled from, in nats
    values: Any  # by the value head, or by the value model, before each token; None where there is neither
    aux: Auxiliary  # the models' auxiliary losses


def sample(
    model: LanguageModel,
    params: Any,
    prompts: Batch,
    key: jax.Array,
    vocabulary: Vocabulary,
    *,
    tokens: int,
    temperature: float,
    group: int = 1,
) -> Rollout:
    """Samples `group` responses of at most `tokens` tokens to each prompt, within the model's context.

    Those to one prompt, which is read once, are consecutive rows. A row's response does not depend on the other rows.
    Prompts may be padded on either side.
    """
    prompts = moved_right(prompts)
    lengths_B = (prompts[SEGMENTS] != 0).sum(axis=1)
    limits_B = jnp.clip(model.settings.context - lengths_B, 0, tokens).astype(jnp.int32)
    settings = SamplingSettings(max_tokens=1, temperature=temperature)
    end = jnp.int32(vocabulary.end)
    arrays = (prompts[TOKENS], prompts[SEGMENTS], limits_B, key, end)
    options: Any = {"settings": settings, "vocab": vocabulary.size}
    with gathered(model, params, len(prompts[TOKENS]) * group) as (decoder, whole):
        decoding = start_traced(decoder, whole, *arrays, most=tokens, **options).repeated(group)
        decoding = advance_traced(decoder, whole, decoding, jnp.int32(tokens), **options)
    prompts, limits_B = repeated(prompts, group), jnp.repeat(limits_B, group)
    mask_BN, finished_B = cut_at_end(decoding.tokens, limits_B, vocabulary.end)
    sampled_BN = jnp.where(mask_BN > 0, decoding.log_probs, 0.0)
    return Rollout(join(prompts, decoding.tokens, mask_BN), mask_BN, sampled_BN, finished_B)


def repeated(prompts: Batch, times: int) -> Batch:
    """Each prompt `times` times; its copies are consecutive."""
    return {name: jnp.repeat(prompts[name], times, axis=0) for name in (TOKENS, POSITIONS, SEGMENTS)}


def moved_right(prompts: Batch) -> Batch:
    """The same prompts with all their padding on the left."""
    segments_BP = prompts[SEGMENTS]
    P = segments_BP.shape[1]
    padding_B1 = jnp.argmax(jnp.flip(segments_BP != 0, axis=1), axis=1)[:, None]  # columns after the last token
    source_BP = (jnp.arange(P)[None, :] - padding_B1) % P
    fields = {name: prompts[name] for name in (TOKENS, POSITIONS, SEGMENTS)}
    return {name: jnp.take_along_axis(array, source_BP, axis=1) for name, array in fields.items()}


def cut_at_end(tokens_BN: jax.Array, limits_B: jax.Array, end: int) -> tuple[jax.Array, jax.Array]:
    """The mask [B, N] of each response up to its first end-of-text, and whether it has one within its limit."""
    within_BN = jnp.arange(tokens_BN.shape[1])[None, :] < limits_B[:, None]
    ends_BN = (tokens_BN == end) & within_BN
    ended_before_BN = jnp.cumsum(ends_BN, axis=1) - ends_BN > 0
    return (within_BN & ~ended_before_BN).astype(jnp.float32), ends_BN.any(axis=1)


def join(prompts: Batch, responses_BN: jax.Array, mask_BN: jax.Array) -> Batch:
    """Prompts and responses as rows; tokens outside the mask become padding."""
    unmasked_BN = mask_BN > 0
    lengths_B1 = (prompts[SEGMENTS] != 0).sum(axis=1, keepdims=True).astype(jnp.int32)
    positions_BN = lengths_B1 + jnp.arange(mask_BN.shape[1], dtype=jnp.int32)[None, :]
    of_response = {
        TOKENS: jnp.where(unmasked_BN, responses_BN, 0),
        POSITIONS: jnp.where(unmasked_BN, positions_BN, 0),
        SEGMENTS: unmasked_BN.astype(jnp.int32),
    }
    return {name: jnp.concatenate([prompts[name], array], axis=1) for name, array in of_response.items()}


def read_responses(
    model: LanguageModel,
    params: Any,
    rows: Batch,
    responses: int,
    vocabulary: Vocabulary,
    temperature: float,
    value_head: Any = None,
    group: int = 1,
) -> Readings:
    """Evaluates the last `responses` columns of the rows, without dropout: the ratio of a policy to itself is 1.

    Each `group` of consecutive rows has one prompt, which is read once where attention holds all scores at once anyway.
    """
    hidden_BTD, aux = _hidden(model, params, rows, responses, group)
    before_BND = hidden_BTD[:, -responses - 1 : -1]
    log_probs_BN, entropy_BN = token_log_probs(
        before_BND,
        model.head(params),
        rows[TOKENS][:, -responses:],
        rows[SEGMENTS][:, -responses:],
        temperature=temperature,
        valid_vocab=vocabulary.size,
        chunking=model.chunking,
    )
    values_BN = None if value_head is None else apply_scalar(value_head, before_BND)
    return Readings(log_probs_BN, entropy_BN, values_BN, aux)


def _hidden(model: LanguageModel, params: Any, rows: Batch, responses: int, group: int) -> Outputs:
    width = rows[TOKENS].shape[1]
    if group == 1 or model.platform != "cpu":
        return model.hidden(params, rows)
    return Outputs(model.hidden_after(params, rows, width - responses, group), {})


def values_before(model: ScalarModel, params: Any, rows: Batch, responses: int) -> tuple[jax.Array, Auxiliary]:
    """A value model's value before each token of a response, [B, N], and its auxiliary losses."""
    values_BT, aux = model.values_and_aux(params, rows)
    return values_BT[:, -responses - 1 : -1], aux
