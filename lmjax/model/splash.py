"""Splash attention, JAX's block-sparse Pallas kernel for TPU, behind the signature of `lmjax.model.attention`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from lmjax.model.masks import Mask

BLOCK = 1024  # queries and keys per grid step, where the sequence is as long: fewer steps, and the tiles fit VMEM
COMPUTE_BLOCK = 512  # keys per inner product


def splash(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, mask: Mask, scale: float, interpret: bool
) -> jax.Array:
    """Attention as in `attention`; T and S are multiples of 128 and queries stand at the keys' own indices."""
    T, H, S = q_BTHK.shape[1], q_BTHK.shape[2], k_BSHK.shape[1]
    make = kernel.make_splash_mha if k_BSHK.shape[2] == H else kernel.make_splash_mqa
    grouped = make is kernel.make_splash_mqa
    heads = H // k_BSHK.shape[2] if grouped else H
    call = make(
        mask=masks.MultiHeadMask([_static_mask(mask, T, S)] * heads),
        block_sizes=block_sizes(T, S),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = kernel.SegmentIds(q=mask.query_segments, kv=mask.key_segments)
    q = jnp.transpose(q_BTHK * jnp.asarray(scale, q_BTHK.dtype), (0, 2, 1, 3))
    k, v = jnp.transpose(k_BSHK, (0, 2, 1, 3)), jnp.transpose(v_BSHK, (0, 2, 1, 3))
    if grouped:
        q = q.reshape(q.shape[0], k.shape[1], heads, T, q.shape[-1])
        call_rows = jax.vmap(jax.vmap(call, (0, 0, 0, None)), (0, 0, 0, 0))
    else:
        call_rows = jax.vmap(call)
    out = call_rows(q, k, v, segments)
    return jnp.transpose(out.reshape(out.shape[0], H, T, -1), (0, 2, 1, 3))


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
