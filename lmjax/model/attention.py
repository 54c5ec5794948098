"""Attention: one function over several implementations, each tested against `einsum`.

In: queries [B, T, H, K], keys and values [B, S, Hkv, K] and a Mask. Out: [B, T, H, K]. `choose` picks the
implementation when the model is built; one asked for by name that cannot serve is an error there, never a fallback.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.errors import UserError, require
from lmjax.model.layers import dropout
from lmjax.model.masks import Mask
from lmjax.settings import AttentionSettings

HIDDEN = -1e30  # the score of a key that is not seen: finite, so that a query that sees nothing gives no NaN
LANES = 128  # a TPU vector register's width, which splash attention's shapes must fill

Kernel = Callable[[jax.Array, jax.Array, jax.Array, Mask, float], jax.Array]


def choose(settings: AttentionSettings, head_dim: int, sequence_length: int, platform: str) -> str:
    """The implementation for training and prefill at these shapes: what the settings name, or the best for `auto`.

    Raises UserError when the settings name one that cannot serve them on `platform` ("cpu", "gpu" or "tpu").
    """
    obstacles = {
        "einsum": "",
        "splash": _splash_obstacle(settings, head_dim, sequence_length, platform),
        "cudnn": _cudnn_obstacle(settings, head_dim, platform),
    }
    if settings.implementation != "auto":
        obstacle = obstacles[settings.implementation]
        name = "model.attention.implementation"
        require(not obstacle, name, settings.implementation, f"another one here: {obstacle}", "use 'auto' or 'einsum'")
        return settings.implementation
    fused = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "einsum")
    return "einsum" if obstacles[fused] else fused


def _splash_obstacle(settings: AttentionSettings, head_dim: int, length: int, platform: str) -> str:
    if settings.dropout:
        return "splash has no attention dropout"
    if length % LANES:
        return f"the sequence length {length} is not a multiple of {LANES}"
    return "" if platform in ("tpu", "cpu") else f"splash runs on TPU, not on {platform}"


def _cudnn_obstacle(settings: AttentionSettings, head_dim: int, platform: str) -> str:
    if settings.dropout:
        return "cuDNN's attention is used without dropout"
    if head_dim > 128 or head_dim % 8:
        return f"the head dimension {head_dim} is not a multiple of 8 up to 128"
    return "" if platform == "gpu" else f"cuDNN runs on GPU, not on {platform}"


def attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    *,
    implementation: str,
    scaled: bool = True,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias, over the keys that `mask` shows) v, per head; softmax in float32.

    `bias` is [1 or B, H, T, S]; `key` draws the dropout of the weights; only `einsum` takes these two. `interpret`
    runs the Pallas kernel in its interpreter, where there is no TPU.
    """
    scale = 1 / math.sqrt(q_BTHK.shape[-1]) if scaled else 1.0
    if implementation == "einsum":
        return _einsum(q_BTHK, k_BSHK, v_BSHK, mask, scale, bias, dropout_rate, key)
    if bias is not None or (key is not None and dropout_rate):
        raise UserError(f"model.attention.implementation = {implementation!r}: bias and dropout need 'einsum'")
    if implementation == "splash":
        from lmjax.model.splash import splash

        return splash(q_BTHK, k_BSHK, v_BSHK, mask, scale, interpret)
    return _cudnn(q_BTHK, k_BSHK, v_BSHK, mask, scale)


def _einsum(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    scale: float,
    bias: jax.Array | None,
    rate: float,
    key: jax.Array | None,
) -> jax.Array:
    B, T, H, K = q_BTHK.shape
    S, Hkv = k_BSHK.shape[1:3]
    q = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, Hkv, H // Hkv, K)
    scores = jnp.einsum("bthgk,bshk->bhgts", q, k_BSHK, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += jnp.broadcast_to(bias, (bias.shape[0], H, T, S)).reshape(-1, Hkv, H // Hkv, T, S)
    scores = jnp.where(mask.visible(T, S)[:, :, None], scores, HIDDEN)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key, 0).astype(v_BSHK.dtype)
    return jnp.einsum("bhgts,bshk->bthgk", weights, v_BSHK).reshape(B, T, H, K)


def _cudnn(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: Mask, scale: float) -> jax.Array:
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    segmented = mask.query_segments is not None
    window = None if mask.band is None else (mask.band - 1, 0 if mask.causal else mask.band - 1)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSHK,
        v_BSHK,
        mask=mask.visible(T, S) if segmented else None,
        is_causal=mask.causal and not segmented,
        local_window_size=None if segmented else window,
        scale=scale,
        implementation="cudnn",
    )
