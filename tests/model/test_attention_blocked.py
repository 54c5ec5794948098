"""Blocked attention, the CPU's, against `einsum`: values and gradients, whatever a block's edge cuts through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.attention import attention
from lmjax.model.attention_cpu import LARGEST, SMALLEST, _ranges
from lmjax.model.masks import Mask

T = 150  # three blocks, the last one shorter


def arrays(queries, keys, heads, kv_heads, width=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, queries, heads, width), (2, keys, kv_heads, width), (2, keys, kv_heads, width)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def ragged(length, ends):
    """Rows of documents that end at the given places; what comes after the last one is padding."""
    rows = [np.searchsorted(places, np.arange(length), side="right") + 1 for places in ends]
    return jnp.asarray([np.where(row > len(places), 0, row) for row, places in zip(rows, ends, strict=True)], jnp.int32)


def values_and_gradients(implementation, q, k, v, mask, weight):
    def loss(q, k, v):
        out = attention(q, k, v, mask, implementation=implementation).astype(jnp.float32)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, grads


def compare(q, k, v, mask, atol):
    real = np.ones(q.shape[:2]) if mask.query_segments is None else np.asarray(mask.query_segments) != 0
    real = real[:, :, None, None]  # what padding attends to is nobody's concern
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape) * real, jnp.float32)
    expected, expected_grads = values_and_gradients("einsum", q, k, v, mask, weight)
    found, grads = values_and_gradients("blocked", q, k, v, mask, weight)
    np.testing.assert_allclose(found * real, expected * real, atol=atol)
    for one, other in zip(grads, expected_grads, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), atol=2 * atol)


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["heads", "grouped"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(("band", "segmented"), [(None, True), (70, True), (1, False)])
def test_blocked_is_einsum_in_values_and_gradients_with_ragged_segments(kv_heads, causal, band, segmented):
    segments = ragged(T, [[3, 64, 131, 150], [90, 91, 140]]) if segmented else None
    compare(*arrays(T, T, 4, kv_heads), Mask(causal, band, segments, segments), 1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(100, 37), (37, 100)])
def test_blocked_cross_attention_is_einsum(queries, keys):
    mask = Mask(False, None, ragged(queries, [[queries], [queries]]), ragged(keys, [[keys], [20]]))
    compare(*arrays(queries, keys, 4, 2), mask, 1e-5)


def test_blocked_in_bfloat16_is_einsum_to_the_last_bits_of_bfloat16():
    compare(*arrays(T, T, 2, 2, dtype=jnp.bfloat16), Mask(True, None), 0.02)


def test_a_document_is_not_moved_by_another_one_in_its_row():
    q, k, v = arrays(T, T, 2, 2)
    segments = ragged(T, [[75, 150], [75, 150]])
    second = (np.asarray(segments) == 2)[:, :, None, None]
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape) * second, jnp.float32)
    _, grads = values_and_gradients("blocked", q, k, v, Mask(True, None, segments, segments), weight)
    for grad in grads:
        assert np.abs(np.where(second, grad, 0)).max() > 1e-3
        assert (np.where(second, 0, grad) == 0).all()


@pytest.mark.parametrize(("causal", "band"), [(True, None), (True, 100), (False, 100)])
def test_a_block_meets_few_keys_that_no_query_of_it_sees(causal, band):
    """Blocks cover every pair that a mask shows, once, and at most a block's width of hidden keys at each end."""
    length = 1000
    seen = np.asarray(Mask(causal, band).visible(length, length))[0, 0]
    met = np.zeros_like(seen)
    for part in _ranges(length, length, causal, band):
        assert SMALLEST <= part.stop - part.start <= LARGEST
        met[part.start : part.stop, part.first : part.last] = True
        block = seen[part.start : part.stop, part.first : part.last]
        assert block.any(0).all(), "a key that no query of the block sees"
    assert (met | ~seen).all()
