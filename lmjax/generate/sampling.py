"""From logits to the next token: temperature, top-k, top-p and the repetition penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.errors import require
from lmjax.fields import check_fields

EXCLUDED = -jnp.inf  # the logit of a token that is never drawn, at any temperature
MOST = 1e6  # the largest temperature or penalty: far above useful values, and logits stay finite in float32
BLOCK = 256  # neighbouring tokens of which one is drawn after their block


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn."""

    max_tokens: int = 128
    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int | None = None  # only the k most likely tokens
    top_p: float | None = None  # only the most likely tokens that together have this probability (Holtzman et al. 2020)
    repetition_penalty: float = 1.0  # Keskar et al. 2019, section 4.1; 1 is none
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    ends: tuple[int, ...] = ()  # tokens that end a text, in addition to the tokenizer's end of text
    seed: int = 0
    top: int = 0  # the number of alternatives to report per token
    # When the model's context is full: stop, or read its last half again and continue.
    beyond_context: Literal["stop", "slide"] = "stop"

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.max_tokens > 0, "max_tokens", self.max_tokens, "a number above 0", "use at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more", "use 0 for greedy decoding")
        within = self.temperature == 0 or 1 / MOST <= self.temperature <= MOST
        expected = f"0, or a number from {1 / MOST:g} to {MOST:g}"
        require(within, "temperature", self.temperature, expected, "use 0 for greedy decoding")
        require(
            self.top_k is None or self.top_k > 0, "top_k", self.top_k, "a number above 0", "leave it out for no limit"
        )
        p = self.top_p
        require(p is None or 0 < p <= 1, "top_p", p, "a probability in (0, 1]", "leave it out for no limit")
        penalty = self.repetition_penalty
        require(0 < penalty <= MOST, "repetition_penalty", penalty, f"above 0, at most {MOST:g}", "use 1 for none")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a number from 0 to 2^32 - 1", "use a smaller one")
        require(self.top >= 0, "top", self.top, "0 or more", "use 0 for no alternatives")
        require(all(self.stop), "stop", self.stop, "strings that are not empty", "leave the empty one out")


def penalise_repetition(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """Logits of tokens that the row contains: divided by the penalty if positive and multiplied if negative."""
    lowered = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered, logits_BV)


def keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """The k largest logits of a row and those equal to the k-th; the others become EXCLUDED."""
    last_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV >= last_B1, logits_BV, EXCLUDED)


def keep_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """The smallest set of most likely tokens whose probabilities sum to p, and those as likely as its last."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) - jax.nn.softmax(sorted_BV, axis=-1)
    last_B1 = jnp.min(jnp.where(before_BV < p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= last_B1, logits_BV, EXCLUDED)


def draw(logits_BV: jax.Array, keys_B: jax.Array, settings: SamplingSettings) -> jax.Array:
    """The next token of each row, int32 [B]. `logits_BV` include temperature and penalty; row i uses key i."""
    if settings.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if settings.top_k is not None:
        logits_BV = keep_top_k(logits_BV, settings.top_k)
    if settings.top_p is not None and settings.top_p < 1:
        logits_BV = keep_top_p(logits_BV, settings.top_p)
    return jax.vmap(categorical)(logits_BV, keys_B)


def categorical(logits_V: jax.Array, key: jax.Array) -> jax.Array:
    """A token drawn with the probabilities of a softmax, int32: two uniform numbers invert cumulative sums.

    The first number chooses a block of tokens and the second one of its tokens: sums stay short, and no random number
    is made for every entry of the vocabulary.
    """
    weights_V = jnp.exp(logits_V - logits_V.max())
    V = weights_V.shape[0]
    weights_KW = jnp.pad(weights_V, (0, -V % BLOCK)).reshape(-1, BLOCK)
    first, second = jax.random.uniform(key, (2,))
    block = _inverted(weights_KW.sum(axis=1), first)
    return (block * BLOCK + _inverted(weights_KW[block], second)).astype(jnp.int32)


def _inverted(weights_N: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index whose cumulative weight is above `uniform`, in [0, 1), of the sum; its weight is above 0."""
    sums_N = jnp.cumsum(weights_N)
    above_N = (sums_N > uniform * sums_N[-1]) & (weights_N > 0)  # rounded sums may grow where a weight is 0
    return jnp.where(above_N.any(), jnp.argmax(above_N), jnp.argmax(weights_N))
