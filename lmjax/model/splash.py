"""Splash attention, JAX's block-sparse Pallas kernel for TPU, behind the signature of `lmjax.model.attention`.

On a mesh each device runs the kernel on its own rows, heads and queries; keys and values are gathered over time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.model.masks import Mask
from lmjax.model.remat import ATTENDED, KEY, QUERY, VALUE
from lmjax.model.sharding_context import bound_mesh

BLOCK = 1024  # queries and keys per grid step, where the sequence is as long: fewer steps, and the tiles fit VMEM
COMPUTE_BLOCK = 512  # keys per inner product


def splash(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: Mask, scale: float, interpret: bool
) -> jax.Array:
    """Attention as in `attention`; T and S are multiples of 128 and queries stand at the keys' own indices."""
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = kernel.SegmentIds(q=mask.query_segments, kv=mask.key_segments)
    q = jnp.transpose(q_BTHK * jnp.asarray(scale, q_BTHK.dtype), (0, 2, 1, 3))
    k, v = jnp.transpose(k_BSHK, (0, 2, 1, 3)), jnp.transpose(v_BSHK, (0, 2, 1, 3))
    q, k, v = checkpoint_name(q, QUERY), checkpoint_name(k, KEY), checkpoint_name(v, VALUE)
    bound = bound_mesh()
    if bound is None:
        out = _rows(_kernel(mask, T, S, q.shape[1], k.shape[1], 1, interpret), q, k, v, segments)
    else:
        heads, time = bound.size("act_heads"), bound.spec("time")
        uniform = not mask.causal and mask.band is None  # every part of the queries sees the same: one kernel for all
        parts, queries = (1, T // bound.size("time")) if uniform else (bound.size("time"), T)
        call = _kernel(mask, queries, S, q.shape[1] // heads, k.shape[1] // heads, parts, interpret)
        q_spec = bound.spec("batch", "act_heads", "time", None)
        kv_spec = bound.spec("batch", "act_kv_heads", None, None)
        shards = PartitionSpec(None, None) if uniform else PartitionSpec(None, *time)
        call_spec = call.manual_sharding_spec(NamedSharding(bound.mesh, shards))
        per_row: Any = (bound.spec("batch", "time"), bound.spec("batch", None))
        segment_spec = segments and kernel.SegmentIds(*per_row)
        specs = (call_spec, q_spec, kv_spec, kv_spec, segment_spec)
        out = bound.per_shard(_rows, specs, q_spec)(call, q, k, v, segments)
    return jnp.transpose(out, (0, 2, 1, 3))


def _rows(call: Any, q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> jax.Array:
    """The kernel over the rows of [B, H, T, K]; where queries share keys, also over the groups."""
    if q.shape[1] == k.shape[1]:
        return jax.vmap(call)(q, k, v, segments)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
    return jax.vmap(jax.vmap(call, (0, 0, 0, None)), (0, 0, 0, 0))(grouped, k, v, segments).reshape(q.shape)


def _kernel(mask: Mask, T: int, S: int, heads: int, kv_heads: int, time_shards: int, interpret: bool) -> Any:
    """The kernel for one device's heads and T queries, of which each of `time_shards` devices takes its part."""
    make = kernel.make_splash_mha if heads == kv_heads else kernel.make_splash_mqa
    return make(
        mask=masks.MultiHeadMask([_static_mask(mask, T, S)] * (heads if heads == kv_heads else heads // kv_heads)),
        block_sizes=block_sizes(T // time_shards, S),
        head_shards=1,
        q_seq_shards=time_shards,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )


def block_sizes(T: int, S: int) -> kernel.BlockSizes:
    """The largest blocks up to BLOCK that divide the sequence; separate kernels for dq and for dk and dv."""
    q, kv = _divisor(T, BLOCK), _divisor(S, BLOCK)
    compute = _divisor(kv, COMPUTE_BLOCK)
    return kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=compute,
        block_q_dq=q,
        block_kv_dq=kv,
    )


def _divisor(length: int, most: int) -> int:
    return max(size for size in range(128, min(length, most) + 1, 128) if length % size == 0)


def _static_mask(mask: Mask, T: int, S: int) -> masks.Mask:
    if mask.band is not None:
        return masks.LocalMask((T, S), window_size=(mask.band - 1, 0 if mask.causal else mask.band - 1), offset=0)
    return masks.CausalMask((T, S)) if mask.causal else masks.FullMask((T, S))
