"""Attention: one function over several implementations, each tested against `einsum`.

In: queries [B, T, H, K], keys and values [B, S, Hkv, K] and a Mask. Out: [B, T, H, K]. `choose` picks the
implementation when the model is built; a named one that cannot serve the model is an error, never a fallback.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lmjax.errors import UserError, require
from lmjax.model.attention_cpu import blocked
from lmjax.model.layers import dropout, soft_cap
from lmjax.model.masks import HIDDEN, Mask
from lmjax.model.positions import DistanceBias
from lmjax.model.remat import ATTENDED, KEY, QUERY, VALUE
from lmjax.model.sharding import bound_mesh
from lmjax.model.zigzag import LANES
from lmjax.settings import ModelSettings

TILE_ROWS = 8  # of a TPU's registers

Kernel = Callable[[jax.Array, jax.Array, jax.Array, Mask, float], jax.Array]


def choose(
    settings: ModelSettings, dtype: jnp.dtype, platform: str, *, segmented: bool, sequence_length: int | None = None
) -> str:
    """The implementation for training on `platform` ("cpu", "gpu" or "tpu"): the settings', or `auto`'s choice.

    `segmented`: rows hold several segments, which must not attend to each other. Raises UserError when the settings
    name an implementation that cannot serve the model on the platform, for rows of `sequence_length` tokens if that is
    not None. Decoding with a cache always uses `einsum`.
    """
    named = settings.attention.implementation
    obstacles = {
        "einsum": "",
        "splash": _kernel_obstacle(settings) or _splash_obstacle(platform, sequence_length),
        "cudnn": _kernel_obstacle(settings) or _cudnn_obstacle(settings, dtype, platform, segmented),
        "blocked": _blocked_obstacle(settings, platform),
    }
    if named != "auto":
        obstacle = obstacles[named]
        field = "model.attention.implementation"
        require(not obstacle, field, named, f"another one here: {obstacle}", "use 'auto' or 'einsum'")
        return named
    fused = {"tpu": "splash", "gpu": "cudnn", "cpu": "blocked"}.get(platform, "einsum")
    fused = "blocked" if settings.positions.kind == "relative" else fused
    return "einsum" if obstacles[fused] else fused


def _dropout_obstacle(settings: ModelSettings) -> str:
    """Why no implementation that never holds all scores can serve a model, or ""."""
    dropped = settings.attention.dropout
    return "model.attention.dropout needs the attention weights, which no fused kernel keeps" if dropped else ""


def _kernel_obstacle(settings: ModelSettings) -> str:
    """Why no kernel of another library can serve a model, or ""."""
    if settings.positions.kind == "relative":
        return "model.positions.kind = 'relative' learns a bias of the scores, which that kernel has not"
    return _dropout_obstacle(settings)


def _blocked_obstacle(settings: ModelSettings, platform: str) -> str:
    bound = bound_mesh()
    if platform != "cpu" and bound is not None and bound.size("time") > 1:
        return (
            f"mesh.sequence = {bound.size('time')} cuts the queries, of which a block would gather those of all devices"
        )
    return _dropout_obstacle(settings)


def _splash_obstacle(platform: str, length: int | None) -> str:
    bound = bound_mesh()
    parts = 1 if bound is None else bound.size("time")
    if length is not None and length % (LANES * parts):
        multiple = f"{LANES} for each of mesh.sequence = {parts}" if parts > 1 else str(LANES)
        return f"the sequence length {length} is not a multiple of {multiple}"
    return "" if platform in ("tpu", "cpu") else f"splash runs on TPU, not on {platform}"


def _cudnn_obstacle(settings: ModelSettings, dtype: jnp.dtype, platform: str, segmented: bool) -> str:
    if platform != "gpu":
        return f"cuDNN runs on GPU, not on {platform}"
    if segmented:
        # JAX passes a boolean mask as a bias [B, 1, T, T] and requests its gradient, which few cuDNN versions compute.
        return "cuDNN cannot keep documents apart"
    if not settings.attention.causal and "banded" in settings.attention.pattern:
        return "cuDNN has no band that reaches to both sides, as in a banded layer with model.attention.causal = False"
    if settings.attention.scores.cap is not None:
        return "cuDNN has no cap of scores, as in model.attention.scores.cap"
    if settings.head_dim > 128 or settings.head_dim % 8:
        return f"the head dimension {settings.head_dim} is not a multiple of 8 up to 128"
    return "" if dtype == jnp.bfloat16 else f"cuDNN computes in bfloat16, not in compute.dtype {dtype.name!r}"


def attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    *,
    implementation: str,
    scale: float | None = None,
    cap: float | None = None,
    bias: jax.Array | DistanceBias | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    interpret: bool = False,
    block: int | None = None,
) -> jax.Array:
    """softmax(scale x q k^T + bias, over the keys that `mask` shows) v, per head; softmax in float32.

    `scale` is 1 / sqrt(K) where it is None. `cap` is a soft cap of the scaled scores, which cuDNN has not. `bias` is
    [1 or B, H, T, S], which `einsum` alone supports, or by distance, which `blocked` supports, too; `key` draws the
    dropout of the weights, with `einsum`. `interpret` runs the Pallas kernel in its interpreter, for platforms other
    than TPU; `block` is the largest number of queries, and of keys, in one block of the kernel.
    """
    scale = 1 / math.sqrt(q_BTHK.shape[-1]) if scale is None else scale
    by_distance = bias if isinstance(bias, DistanceBias) else None
    supported = bias is (by_distance if implementation == "blocked" else None)
    if implementation != "einsum" and (not supported or (key is not None and dropout_rate)):
        raise UserError(f"model.attention.implementation = {implementation!r}: bias and dropout need 'einsum'")
    if cap is not None and implementation == "cudnn":
        raise UserError("model.attention.implementation = 'cudnn': a cap of the scores needs another")
    if implementation == "splash":
        from lmjax.model.attention_tpu import splash

        return splash(q_BTHK, k_BSHK, v_BSHK, mask, scale, cap, interpret, block)
    q, k, v = checkpoint_name(q_BTHK, QUERY), checkpoint_name(k_BSHK, KEY), checkpoint_name(v_BSHK, VALUE)
    if implementation == "einsum":
        return checkpoint_name(_einsum(q, k, v, mask, scale, cap, bias, dropout_rate, key), ATTENDED)
    if implementation == "blocked":
        return checkpoint_name(blocked(q, k, v, mask, scale, cap, by_distance), ATTENDED)
    return checkpoint_name(_cudnn(q, k, v, mask, scale), ATTENDED)


def _einsum(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    scale: float,
    cap: float | None,
    bias: jax.Array | DistanceBias | None,
    rate: float,
    key: jax.Array | None,
) -> jax.Array:
    B, T, H, K = q_BTHK.shape
    S, Hkv = k_BSHK.shape[1:3]
    q = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, Hkv, H // Hkv, K)
    scores = soft_cap(jnp.einsum("bthgk,bshk->bhgts", q, k_BSHK, preferred_element_type=jnp.float32), cap)
    if bias is not None:
        whole = _whole(bias, T, S)
        scores += jnp.broadcast_to(whole, (whole.shape[0], H, T, S)).reshape(-1, Hkv, H // Hkv, T, S)
    scores = jnp.where(mask.visible(T, S)[:, :, None], scores, HIDDEN)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key, 0).astype(v_BSHK.dtype)
    return jnp.einsum("bhgts,bshk->bthgk", weights, v_BSHK).reshape(B, T, H, K)


def _whole(bias: jax.Array | DistanceBias, T: int, S: int) -> jax.Array:
    """[1 or B, H, T, S]."""
    return bias.scores(T, S) if isinstance(bias, DistanceBias) else bias


def cached_attention(
    q_BTHK: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: Mask,
    *,
    scale: float,
    cap: float | None,
    bias: jax.Array | DistanceBias | None,
    tpu: bool = False,
) -> jax.Array:
    """`attention` by einsum to the keys and values of a `LayerCache`, in the cache's memory layout.

    For the TPU the few queries of a key's head are repeated to a tile of rows: the compiler then takes the matrix
    units, where it would multiply and add on the vector units, which takes two and a half times as long.
    """
    B, T, H, K = q_BTHK.shape
    lead, S = keys.shape[:-2], keys.shape[-2]
    Hkv = math.prod(lead) // B

    def over_heads(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (B, H, T, S)).reshape(*lead, -1, S)

    q = q_BTHK * jnp.asarray(scale, q_BTHK.dtype)
    q_BHGTK = jnp.moveaxis(q.reshape(B, T, Hkv, H // Hkv, K), 1, 3)
    rows = q_BHGTK.reshape(*lead, -1, K)
    count = rows.shape[-2]
    copies = -(-TILE_ROWS // count) if tpu else 1
    rows = jnp.concatenate([rows] * copies, axis=-2)
    scores = jnp.einsum("...rk,...sk->...rs", rows, keys, preferred_element_type=jnp.float32)
    scores = soft_cap(scores[..., :count, :], cap)
    if bias is not None:
        scores += over_heads(_whole(bias, T, S))
    scores = jnp.where(over_heads(mask.visible(T, S)), scores, HIDDEN)
    weights = jnp.concatenate([jax.nn.softmax(scores, axis=-1).astype(values.dtype)] * copies, axis=-2)
    y_BHGTK = jnp.einsum("...rs,...sk->...rk", weights, values)[..., :count, :].reshape(q_BHGTK.shape)
    return jnp.moveaxis(y_BHGTK, 3, 1).reshape(B, T, H, K)


def _cudnn(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: Mask, scale: float) -> jax.Array:
    if mask.query_segments is not None or (mask.band is not None and not mask.causal):
        raise UserError("attention by cudnn: expected no segments and no two-sided band; use 'einsum' for them")
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSHK,
        v_BSHK,
        is_causal=mask.causal,
        local_window_size=None if mask.band is None else (mask.band - 1, 0),
        scale=scale,
        implementation="cudnn",
    )
