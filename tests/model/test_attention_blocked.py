"""Blocked attention, the CPU's, against `einsum`: values and gradients, whatever a block's edge cuts through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.model.attention import attention
from lmjax.model.attention_cpu import LARGEST, SMALLEST, _ranges
from lmjax.model.masks import Mask
from lmjax.model.positions import RelativeBias
from lmjax.settings import PositionSettings

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


RELATIVE = PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=40)


def biased(implementation, mask, weight, q, k, v, table):
    """The output, and the gradients of queries, keys, values and the table of a relative bias."""
    module = RelativeBias(RELATIVE, heads=q.shape[2], bidirectional=not mask.causal, std=1.0)

    def loss(q, k, v, table):
        positions = jnp.arange(q.shape[1]), jnp.arange(k.shape[1])
        bias = module.apply({"params": {"table": table}}, *positions)
        out = attention(q, k, v, mask, implementation=implementation, bias=bias).astype(jnp.float32)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, table)
    return out, grads


@pytest.mark.parametrize(
    ("causal", "band", "kv_heads", "keys"),
    [(True, None, 4, T), (True, 70, 2, T), (False, None, 2, T), (False, 70, 4, T), (False, None, 4, 97)],
)
def test_a_relative_bias_in_blocks_is_einsum_s_in_values_and_gradients_that_of_the_table_too(
    causal, band, kv_heads, keys
):
    q, k, v = arrays(T, keys, 4, kv_heads)
    table = jnp.asarray(np.random.default_rng(3).normal(size=(8, 4)), jnp.float32)
    segments = ragged(T, [[3, 64, 131, 150], [90, 91, 140]])
    mask = Mask(causal, band, segments, segments if keys == T else ragged(keys, [[20, keys], [60, 80]]))
    real = (np.asarray(segments) != 0) & (np.asarray(segments) <= np.asarray(mask.key_segments).max(1, keepdims=True))
    real = real[:, :, None, None]  # queries that see a key
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape) * real, jnp.float32)
    expected, expected_grads = biased("einsum", mask, weight, q, k, v, table)
    found, grads = biased("blocked", mask, weight, q, k, v, table)
    np.testing.assert_allclose(found * real, expected * real, atol=1e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)
    assert np.abs(grads[3]).min(axis=1).max() > 0.1  # the table's gradient is no zero
    without, _ = biased("blocked", mask, weight, q, k, v, 0 * table)
    assert np.abs((without - found) * real).max() > 0.1


def test_a_relative_bias_gets_the_gradient_of_bfloat16_scores_in_float32():
    q, k, v = arrays(T, T, 2, 2, dtype=jnp.bfloat16)
    table = jnp.asarray(np.random.default_rng(3).normal(size=(8, 2)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape), jnp.float32)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    _, exact = biased("einsum", Mask(True, None), weight, *wide, table)
    _, found = biased("blocked", Mask(True, None), weight, q, k, v, table)
    assert found[3].dtype == jnp.float32
    np.testing.assert_allclose(found[3], exact[3], atol=0.01 * np.abs(exact[3]).max())


def test_a_bias_of_every_pair_is_refused():
    q, k, v = arrays(T, T, 2, 2)
    with pytest.raises(UserError, match="'blocked': bias and dropout need 'einsum'"):
        attention(q, k, v, Mask(True, None), implementation="blocked", bias=jnp.zeros((1, 2, T, T)))


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
