"""A scalar for each token, on top of a language model: reward models and value models, as plain functions.

A reward model's score of a conversation is the scalar at its last real token, which the segments show: padding may be
on either side and may have any token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import SEGMENTS, Batch
from lmjax.model.language_model import LanguageModel, Params
from lmjax.model.outputs import Auxiliary

TRUNK, SCALAR = "trunk", "scalar"


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


@dataclass(frozen=True)
class ScalarModel:
    """A language model whose vocabulary head is replaced by a head with one scalar per token."""

    language_model: LanguageModel

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
        """The scalar at the last real token of every row, float32 [B], without dropout. A row is one conversation."""
        return self.scores_and_aux(params, batch)[0]

    def scores_and_aux(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Auxiliary]:
        """`scores`, with dropout that `rng` draws if it is not None; and the language model's auxiliary losses."""
        hidden_BTD, aux = self.language_model.hidden(params[TRUNK], batch, rng)
        last_B11 = last_real_token(batch[SEGMENTS])[:, None, None]
        hidden_B1D = jnp.take_along_axis(hidden_BTD, last_B11, axis=1)
        return apply_scalar(params[SCALAR], hidden_B1D)[:, 0], aux
