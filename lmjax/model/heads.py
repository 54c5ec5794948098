"""Heads on top of a model of any family, as plain functions: reward and value models, classifiers of texts and tokens.

A reward model's score of a conversation is the scalar at its last real token, which the segments show: padding may be
on either side and may have any token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax.data.batch import SEGMENTS, Batch
from lmjax.model.layers import dropout
from lmjax.model.outputs import Auxiliary
from lmjax.model.transformer import Params, Reads, Transformer

TRUNK, SCALAR, HEAD = "trunk", "scalar", "head"
HEAD_SITE = 3_000_000  # where the dropout before a task's head is drawn


def init_scalar(rng: jax.Array, width: int, *, zero: bool = False) -> Params:
    """The head's parameters: a kernel [D] of standard deviation 1/sqrt(D + 1) (Stiennon et al. 2020), and a bias of 0.

    With `zero` the kernel is 0 (the value head of Ziegler et al. 2019).
    """
    std = 0.0 if zero else 1.0 / math.sqrt(width + 1)
    return {"kernel": std * jax.random.normal(rng, (width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def scalar_axes() -> Params:
    """The logical axes of the head's parameters, which are small and replicated on all devices."""
    return {"kernel": ("norm",), "bias": ()}


def apply_scalar(params: Params, hidden_BTD: jax.Array) -> jax.Array:
    """Float32 scalars [B, T] of hidden states."""
    products_BTD = hidden_BTD.astype(jnp.float32) * params["kernel"][None, None, :]
    return products_BTD.sum(axis=-1) + params["bias"]


def last_real_token(segments_BT: jax.Array) -> jax.Array:
    """The column of each row's last token that is not padding, int32 [B]; the last column for a row of padding."""
    T = segments_BT.shape[1]
    return (T - 1 - jnp.argmax(jnp.flip(segments_BT != 0, axis=1), axis=1)).astype(jnp.int32)


def read(hidden_BTD: jax.Array, segments_BT: jax.Array, how: Reads) -> jax.Array:
    """One vector [B, D] of each row: that of its first or its last real token, or the float32 mean over all of them.

    Padding is segment 0, on either side. The mean of a row of padding is 0.
    """
    real_BT = segments_BT != 0
    if how == "mean":
        sum_BD = (hidden_BTD.astype(jnp.float32) * real_BT[..., None]).sum(axis=1)
        return sum_BD / jnp.maximum(real_BT.sum(axis=1), 1)[:, None]
    column_B = last_real_token(segments_BT) if how == "last" else jnp.argmax(real_BT, axis=1)
    return jnp.take_along_axis(hidden_BTD, column_B[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class ScalarModel:
    """A model whose vocabulary head is replaced by a head with one scalar per token; a score is that which `reads`."""

    language_model: Transformer
    reads: Reads = "last"

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters: `trunk`, those of the language model, and `scalar`."""
        trunk, scalar = jax.random.split(rng)
        return self.on_trunk(self.language_model.init(trunk), scalar)

    def on_trunk(self, trunk: Params, rng: jax.Array, *, zero: bool = False) -> Params:
        """The parameters of a scalar model that is initialised from a language model's parameters, `trunk`."""
        return {TRUNK: trunk, SCALAR: init_scalar(rng, self.language_model.settings.width, zero=zero)}

    def logical_axes(self) -> Any:
        """A tree like the parameters whose leaves are tuples of logical axis names."""
        return {TRUNK: self.language_model.logical_axes(), SCALAR: scalar_axes()}

    def values(self, params: Params, batch: Batch) -> jax.Array:
        """The scalar at every token, float32 [B, T], without dropout; those at padding have no meaning."""
        return self.values_and_aux(params, batch)[0]

    def values_and_aux(self, params: Params, batch: Batch) -> tuple[jax.Array, Auxiliary]:
        """`values`, and the language model's auxiliary losses."""
        hidden_BTD, aux = self.language_model.hidden(params[TRUNK], batch)
        return apply_scalar(params[SCALAR], hidden_BTD), aux

    def scores(self, params: Params, batch: Batch) -> jax.Array:
        """The scalar of every row, float32 [B], without dropout. A row is one conversation."""
        return self.scores_and_aux(params, batch)[0]

    def scores_and_aux(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Auxiliary]:
        """`scores`, with dropout that `rng` draws if it is not None; and the language model's auxiliary losses."""
        hidden_BTD, aux = self.language_model.hidden(params[TRUNK], batch, rng)
        hidden_B1D = read(hidden_BTD, batch[SEGMENTS], self.reads)[:, None]
        return apply_scalar(params[SCALAR], hidden_B1D)[:, 0], aux


@dataclass(frozen=True)
class TaskModel:
    """A model with a dense layer of `outputs` numbers, for each row or for each of its tokens.

    reads: which hidden state the layer takes: a row's "first", "last" or "mean", BERT's "pooled", or those of all
    "tokens"; "auto" is "pooled" for an encoder with a pooler, "first" for another encoder, and "last" else. Before the
    layer there is the model's own dropout.
    """

    trunk: Transformer
    outputs: int
    reads: Literal[Reads, "auto", "pooled", "tokens"] = "auto"

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters: `trunk`, and `head`, a kernel [D, outputs] and a bias [outputs]."""
        trunk, head = jax.random.split(rng)
        return self.on_trunk(self.trunk.init(trunk), head)

    def on_trunk(self, trunk: Params, rng: jax.Array) -> Params:
        """The parameters with those of the trunk, and a fresh head of the deviation init_std, a bias of 0."""
        shape = (self.trunk.settings.width, self.outputs)
        std = self.trunk.settings.init_std or self.trunk.settings.width**-0.5
        head = {"kernel": std * jax.random.normal(rng, shape, jnp.float32), "bias": jnp.zeros(shape[1:], jnp.float32)}
        return {TRUNK: trunk, HEAD: head}

    def logical_axes(self) -> Any:
        """A tree like the parameters whose leaves are tuples of logical axis names."""
        return {TRUNK: self.trunk.logical_axes(), HEAD: {"kernel": ("embed", None), "bias": (None,)}}

    def outputs_of(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Auxiliary]:
        """The head's numbers, float32 [B, outputs], or [B, T, outputs] of all tokens; and auxiliary losses."""
        hidden_BTD, aux = self.trunk.hidden(params[TRUNK], batch, rng)
        return self.on_hidden(params, hidden_BTD, batch[SEGMENTS], rng), aux

    def on_hidden(
        self, params: Params, hidden_BTD: jax.Array, segments_BT: jax.Array, rng: jax.Array | None = None
    ) -> jax.Array:
        """`outputs_of`, of hidden states that are there already."""
        x = self._read(params, hidden_BTD, segments_BT)
        x = dropout(x, self.trunk.settings.dropout, rng, HEAD_SITE).astype(jnp.float32)
        bias = params[HEAD]["bias"]
        return x @ params[HEAD]["kernel"] + bias.reshape(*[1] * (x.ndim - 1), -1)

    def _read(self, params: Params, hidden_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
        reads = self.trunk.read_by_heads if self.reads == "auto" else self.reads
        if reads == "tokens":
            return hidden_BTD
        if reads == "pooled":
            return self.trunk.pooled(params[TRUNK], hidden_BTD)
        return read(hidden_BTD, segments_BT, reads)
