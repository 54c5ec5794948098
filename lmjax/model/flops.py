"""Parameters and FLOPs of a model, computed from its shapes without allocating anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmjax.errors import require
from lmjax.settings import ModelSettings

TRAIN = 3  # a training step makes a forward pass's products three times: forward, and two gradients


@dataclass(frozen=True)
class Count:
    """Exact counts.

    `embedding_parameters` are the token and position tables, without an untied head, as in Kaplan et al. 2020, section
    2.1; `parameters_with_head` are the others and the head, also a tied one, as in Porian et al. 2024.
    `flops_per_token` is of a training step, forward and backward, a multiply and an add being
    two: 6 for every parameter of a matrix that a token is multiplied with, the head included, plus the attention
    scores and their use, 12 x heads x head_dim x (keys that a query sees, on average over the row) per layer.
    `flops_per_token_6n` is 6 x all parameters.
    """

    parameters: int
    embedding_parameters: int
    non_embedding_parameters: int
    parameters_with_head: int
    flops_per_token: int
    flops_per_token_6n: int


def count(settings: ModelSettings, sequence_length: int | None = None, input_length: int | None = None) -> Count:
    """Counts a model; FLOPs are for rows of `sequence_length` tokens, by default the whole context.

    A row of an encoder-decoder has `input_length` more tokens, by default as many, which its encoder reads; a token is
    then one of either kind, and the FLOPs are an average over both. Raises UserError if the vocabulary's size is not
    set.
    """
    vocab = settings.vocab_size
    require(vocab is not None, "model.vocab_size", vocab, "a number of rows", "set it to count the model")
    assert vocab is not None
    length = sequence_length or settings.context
    tables = vocab * settings.width
    if settings.positions.kind == "learned":
        tables += settings.context * settings.width
    tables += settings.positions.segment_types * settings.width
    head = 0 if settings.tied_head else vocab * settings.width
    norms = (norm := _norm(settings)) * (settings.norm.final + settings.norm.embeddings)
    branch = norm * (2 if settings.norm.position == "sandwich" else 1)
    layer = _matrices(settings) + _biases(settings) + 2 * branch + _qk_norms(settings)
    total = tables + head + settings.layers * layer + norms + _relative(settings) + _before_logits(settings)
    if settings.encoder_layers is not None:
        total += settings.encoder_layers * layer + norm * settings.norm.final + _relative(settings)
        total += settings.layers * (_attention(settings) + _attention_biases(settings) + branch)
    with_head = total - tables + (vocab * settings.width if settings.tied_head else 0)
    of = forward_flops(settings, length, input_length)
    flops = math.floor(TRAIN * (of.body + of.head)) + math.floor(TRAIN * of.scores)
    return Count(total, tables, total - tables, with_head, flops, 6 * total)


@dataclass(frozen=True)
class Forward:
    """FLOPs per token of a forward pass: of the layers' matrices, of the head, and of the scores."""

    body: float
    head: float
    scores: float


def forward_flops(model: ModelSettings, length: int, input_length: int | None = None) -> Forward:
    """Of rows of `length` tokens; of an encoder-decoder, see `count`."""
    D, scores_of_key = model.width, 4 * model.attention.heads * model.head_dim
    body = 2 * (model.layers * _matrices(model) + model.head.transform * D**2)
    head = 2 * (model.vocab_size or 0) * D
    scores = scores_of_key * _seen_keys(model, length, model.attention.causal, model.layers)
    if model.encoder_layers is None:
        return Forward(body, head, scores)
    inputs = input_length or length
    row = length + inputs
    body += model.layers * scores_of_key * D  # queries and outputs of the cross-attention
    scores += model.layers * scores_of_key * inputs
    encoder = 2 * model.encoder_layers * _matrices(model)
    encoder += 4 * model.layers * model.kv_heads * model.head_dim * D  # its keys and values
    scores_of_inputs = scores_of_key * _seen_keys(model, inputs, False, model.encoder_layers)
    return Forward(
        body=(length * body + inputs * encoder) / row,
        head=length * head / row,
        scores=(length * scores + inputs * scores_of_inputs) / row,
    )


def _matrices(settings: ModelSettings) -> int:
    feed_forward = (3 if settings.feed_forward.gated else 2) * settings.feed_forward_width
    return _attention(settings) + settings.width * feed_forward


def _attention(settings: ModelSettings) -> int:
    return settings.width * 2 * (settings.attention.heads + settings.kv_heads) * settings.head_dim


def _biases(settings: ModelSettings) -> int:
    hidden = settings.feed_forward_width * (2 if settings.feed_forward.gated else 1)
    return _attention_biases(settings) + settings.feed_forward.bias * (hidden + settings.width)


def _attention_biases(settings: ModelSettings) -> int:
    projections = (settings.attention.heads + 2 * settings.kv_heads) * settings.head_dim
    return settings.attention.bias * projections + settings.attention.has_out_bias * settings.width


def _qk_norms(settings: ModelSettings) -> int:
    heads = {"none": 0, "head": 2, "projection": settings.attention.heads + settings.kv_heads}
    return heads[settings.attention.qk_norm] * settings.head_dim * _vectors(settings)


def _before_logits(settings: ModelSettings) -> int:
    """What stands behind the last hidden states beside a table."""
    head, square = settings.head, settings.width**2 + settings.width
    bias = head.bias * (settings.vocab_size or 0)
    return bias + head.pooler * square + head.transform * (square + _norm(settings))


def _norm(settings: ModelSettings) -> int:
    return settings.width * _vectors(settings)


def _vectors(settings: ModelSettings) -> int:
    """Parameters of a norm for each element that it normalises."""
    return 2 if settings.norm.kind == "layernorm" and settings.norm.bias else 1


def _relative(settings: ModelSettings) -> int:
    used = settings.positions.kind == "relative"
    return settings.positions.relative_buckets * settings.attention.heads if used else 0


def _seen_keys(settings: ModelSettings, length: int, causal: bool, layers: int) -> float:
    """Over all layers of a stack, the keys that a query sees, averaged over a row of `length` tokens."""
    attention = settings.attention
    repeats = layers // len(attention.pattern)
    bands = (attention.band_of(kind) for kind in attention.pattern)
    return repeats * sum(_mean_keys(length, band, causal) for band in bands)


def _mean_keys(length: int, band: int | None, causal: bool) -> float:
    width = min(band or length, length)
    total = width * (width + 1) / 2 + (length - width) * width  # at a query's own index and before
    return (total if causal else 2 * total - length) / length
