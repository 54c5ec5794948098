"""Splash attention, JAX's block-sparse Pallas kernel for TPU, with the signature of `lmjax.model.attention`.

On a mesh each device runs the kernel on its shard of rows, heads and queries; keys and values are gathered over time,
and causal queries are distributed in zig-zag (`lmjax.model.zigzag`), so that all devices compute equally many blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.model import zigzag
from lmjax.model.attention_blocks import BLOCK, COMPUTE_BLOCK, has_fused_backward, largest_block
from lmjax.model.masks import Mask
from lmjax.model.remat import ATTENDED, KEY, QUERY, VALUE
from lmjax.model.sharding import BoundMesh, bound_mesh, row_major


def splash(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask,
    scale: float,
    cap: float | None,
    interpret: bool,
    block: int | None = None,
) -> jax.Array:
    """Attention as in `attention`; T and S are multiples of 128 and query t has the index of key t.

    `block` is the largest number of queries, and of keys, in a step of the kernel's grid; None means BLOCK.
    """
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = kernel.SegmentIds(q=mask.query_segments, kv=mask.key_segments)
    q = jnp.transpose(q_BTHK * jnp.asarray(scale, q_BTHK.dtype), (0, 2, 1, 3))
    k, v = jnp.transpose(k_BSHK, (0, 2, 1, 3)), jnp.transpose(v_BSHK, (0, 2, 1, 3))
    k, v = checkpoint_name(k, KEY), checkpoint_name(v, VALUE)
    bound = bound_mesh()
    if bound is None:
        q = checkpoint_name(q, QUERY)
        call = make_kernel(mask, q.shape[2], k.shape[2], q.shape[1], k.shape[1], Parts(1, False), interpret, block, cap)
        out = over_rows(call, q, k, v, segments)
    else:
        out = _on_mesh(bound, q, k, v, mask, segments, interpret, block, cap)
    return jnp.transpose(out, (0, 2, 1, 3))


class Parts(NamedTuple):
    """How the queries of a row are sharded over devices."""

    devices: int
    zigzag: bool


def parts_of(mask: Mask, T: int, devices: int, block: int | None = None) -> Parts:
    """Zig-zag where contiguous shards have unequal work: causal rows, unless a band is shorter than a shard.

    Rows whose keys fit one block stay contiguous, because the kernel cannot skip a part of a block; and so do rows
    whose pieces would not fill registers.
    """
    unequal = mask.causal and (mask.band is None or mask.band > T // devices)
    divisible = devices > 1 and (block or BLOCK) < T and T % (2 * devices * zigzag.LANES) == 0
    return Parts(devices, unequal and divisible)


def _on_mesh(
    bound: BoundMesh,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    segments: Any,
    interpret: bool,
    block: int | None,
    cap: float | None,
) -> jax.Array:
    """The kernel on every device's shard of [B, H, T, K]."""
    (H, T), (Hkv, S), heads = q.shape[1:3], k.shape[1:3], bound.size("act_heads")
    time, (axes,) = bound.size("time"), bound.spec("time")
    uniform = not mask.causal and mask.band is None  # every shard of the queries sees all keys: one kernel for all
    parts = Parts(1, False) if uniform else parts_of(mask, T, time, block)
    call = make_kernel(mask, T // time if uniform else T, S, H // heads, Hkv // heads, parts, interpret, block, cap)

    def part(call: Any, q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> jax.Array:
        if time > 1:
            k, v = (jax.lax.all_gather(x, axes, axis=2, tiled=True) for x in (k, v))
        if not parts.zigzag:
            return over_rows(call, checkpoint_name(q, QUERY), k, v, segments)
        q = checkpoint_name(zigzag.deal(q, 2, axes, time), QUERY)
        if segments is not None:
            segments = segments._replace(q=zigzag.deal_replicated(segments.q, 1, axes, time))
        return zigzag.collect(over_rows(call, q, k, v, segments), 2, axes, time)

    shards = PartitionSpec(None, None) if uniform else PartitionSpec(None, axes)
    call_spec = call.manual_sharding_spec(NamedSharding(bound.mesh, shards))
    q_spec = bound.spec("batch", "act_heads", "time", None)
    kv_spec = bound.spec("batch", "act_kv_heads", "time", None)
    per_row: Any = (bound.spec("batch", None if parts.zigzag else "time"), bound.spec("batch", None))
    specs = (call_spec, q_spec, kv_spec, kv_spec, segments and kernel.SegmentIds(*per_row))
    return bound.per_shard(part, specs, q_spec)(call, q, k, v, segments)


def over_rows(call: Any, q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> jax.Array:
    """The kernel over the rows of [B, H, T, K]; for grouped-query attention also over the groups."""
    if q.shape[1] == k.shape[1]:
        out = jax.vmap(call)(q, k, v, segments)
    else:
        grouped = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
        out = jax.vmap(jax.vmap(call, (0, 0, 0, None)), (0, 0, 0, 0))(grouped, k, v, segments).reshape(q.shape)
    # The compiler packs heads that fill no register by laying them out otherwise.
    return row_major(out) if q.shape[3] % zigzag.LANES == 0 else out


def make_kernel(
    mask: Mask,
    T: int,
    S: int,
    heads: int,
    kv_heads: int,
    parts: Parts,
    interpret: bool,
    block: int | None = None,
    cap: float | None = None,
) -> Any:
    """The kernel for one device's heads and T queries, which are divided over `parts.devices`."""
    make = kernel.make_splash_mha if heads == kv_heads else kernel.make_splash_mqa
    visible: Any = _static_mask(mask, T, S)
    if parts.zigzag:
        visible.q_sequence = zigzag.query_order(T, parts.devices)
    return make(
        mask=masks.MultiHeadMask([visible] * (heads if heads == kv_heads else heads // kv_heads)),
        block_sizes=block_sizes(T // parts.devices // (2 if parts.zigzag else 1), S, block or BLOCK),
        head_shards=1,
        q_seq_shards=parts.devices,
        residual_checkpoint_name=ATTENDED,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def block_sizes(T: int, S: int, most: int) -> kernel.BlockSizes:
    """The largest blocks up to `most` that divide T queries and S keys, and whether one kernel makes all gradients."""
    q, kv = largest_block(T, most), largest_block(S, most)
    compute, fused = largest_block(kv, COMPUTE_BLOCK), has_fused_backward(S, most)
    return kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
    )


def _static_mask(mask: Mask, T: int, S: int) -> masks.Mask:
    if mask.band is not None:
        return masks.LocalMask((T, S), window_size=(mask.band - 1, 0 if mask.causal else mask.band - 1), offset=0)
    return masks.CausalMask((T, S)) if mask.causal else masks.FullMask((T, S))
