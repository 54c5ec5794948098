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


def count(settings: ModelSettings, sequence_length: int | None = None) -> Count:
    """Counts a model; FLOPs are for rows of `sequence_length` tokens, by default the whole context.

    Raises UserError if the vocabulary's size is not set.
    """
    vocab = settings.vocab_size
    require(vocab is not None, "model.vocab_size", vocab, "a number of rows", "set it to count the model")
    assert vocab is not None
    length = sequence_length or settings.context
    tables = vocab * settings.width
    if settings.positions.kind == "learned":
        tables += settings.context * settings.width
    head = 0 if settings.tied_head else vocab * settings.width
    norm = _norm(settings)
    matrices = _matrices(settings)
    layer = matrices + _biases(settings) + 2 * norm
    total = tables + head + settings.layers * layer + (norm if settings.norm.final else 0) + _relative(settings)
    multiplied = settings.layers * matrices + vocab * settings.width
    scores = 12 * settings.attention.heads * settings.head_dim * _seen_keys(settings, length)
    with_head = total - tables + (vocab * settings.width if settings.tied_head else 0)
    return Count(total, tables, total - tables, with_head, 6 * multiplied + math.floor(scores), 6 * total)


@dataclass(frozen=True)
class Forward:
    """FLOPs per token of a forward pass: of the layers' matrices, of the head, and of the scores."""

    body: float
    head: float
    scores: float


def forward_flops(model: ModelSettings, length: int) -> Forward:
    """Of rows of `length` tokens, from the counts of a training step."""
    scores_of_one = 12 * model.attention.heads * model.head_dim * model.layers
    matrices = count(model, 1).flops_per_token - scores_of_one
    head = 2 * (model.vocab_size or 0) * model.width
    return Forward(matrices / TRAIN - head, head, (count(model, length).flops_per_token - matrices) / TRAIN)


def _matrices(settings: ModelSettings) -> int:
    query = settings.attention.heads * settings.head_dim
    key_value = 2 * settings.kv_heads * settings.head_dim
    feed_forward = (3 if settings.feed_forward.gated else 2) * settings.feed_forward_width
    return settings.width * (2 * query + key_value + feed_forward)


def _biases(settings: ModelSettings) -> int:
    attention = (settings.attention.heads + 2 * settings.kv_heads) * settings.head_dim + settings.width
    hidden = settings.feed_forward_width * (2 if settings.feed_forward.gated else 1)
    return settings.attention.bias * attention + settings.feed_forward.bias * (hidden + settings.width)


def _norm(settings: ModelSettings) -> int:
    biased = settings.norm.kind == "layernorm" and settings.norm.bias
    return settings.width * (2 if biased else 1)


def _relative(settings: ModelSettings) -> int:
    used = settings.positions.kind == "relative"
    return settings.positions.relative_buckets * settings.attention.heads if used else 0


def _seen_keys(settings: ModelSettings, length: int) -> float:
    """Over all layers, the keys that a query sees, averaged over a row of `length` tokens."""
    attention = settings.attention
    repeats = settings.layers // len(attention.pattern)
    bands = (attention.band if kind == "banded" else None for kind in attention.pattern)
    return repeats * sum(_mean_keys(length, band, attention.causal) for band in bands)


def _mean_keys(length: int, band: int | None, causal: bool) -> float:
    width = min(band or length, length)
    total = width * (width + 1) / 2 + (length - width) * width  # at a query's own index and before
    return (total if causal else 2 * total - length) / length
