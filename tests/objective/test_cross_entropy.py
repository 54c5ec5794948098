"""Cross-entropy against a float64 loop and against autodiff of its plain form; what it holds at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.logit_head import LogitHead
from lmjax.model.transformer import LOGITS_AT_ONCE, Chunking
from lmjax.objective import cross_entropy as chunked
from lmjax.objective.chunks import chunk_count
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import batch_sharding, on_mesh
from lmjax.settings import MeshSettings

pytestmark = pytest.mark.usefixtures("unoptimized")

B, T, D, V = 3, 12, 8, 40


def cross_entropy(hidden, table, *rest, **settings):
    """Of a head that is a table alone."""
    return chunked.cross_entropy(hidden, LogitHead(table), *rest, **settings)


UNEQUAL = np.array([[1000.0] + [0.0] * (T - 1), [1e-3] * T, [0.0] * (T // 2) + [1.0] * (T // 2)], np.float32)
TERMS = {
    "plain": {},
    "z_loss": {"z_loss": 0.02},
    "label_smoothing": {"label_smoothing": 0.2},
    "all": {"z_loss": 0.02, "label_smoothing": 0.2, "valid_vocab": 33},
}


def inputs(dtype=jnp.float32, weights=UNEQUAL, vocab=V):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)) * 2, dtype)
    head = jnp.asarray(rng.normal(size=(vocab, D)), dtype)
    targets = rng.integers(0, 33, (B, T)).astype(np.int32)
    return hidden, head, jnp.asarray(targets), jnp.asarray(weights)


def reference(hidden, head, targets, weights, z_loss=0.0, label_smoothing=0.0, valid_vocab=None):
    """Token by token in float64: sums of loss, plain cross-entropy and correct ones, gradients of hidden and head."""
    hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    vocab = valid_vocab or len(head)
    total = entropy = correct = 0.0
    grad_hidden, grad_head = np.zeros_like(hidden), np.zeros_like(head)
    for b, t in np.ndindex(*weights.shape):
        logits = head[:vocab] @ hidden[b, t]
        log_z = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        wanted = np.full(vocab, label_smoothing / vocab)
        wanted[targets[b, t]] += 1 - label_smoothing
        total += weights[b, t] * (log_z - wanted @ logits + z_loss * log_z**2)
        entropy += weights[b, t] * (log_z - logits[targets[b, t]])
        correct += weights[b, t] * (logits.argmax() == targets[b, t])
        slope = weights[b, t] * (np.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - wanted)
        grad_hidden[b, t] = slope @ head[:vocab]
        grad_head[:vocab] += np.outer(slope, hidden[b, t])
    return total, entropy, correct, grad_hidden, grad_head


def value_and_gradients(arrays, cotangent=1.0, chunk=None, vocab_last=False, weighted_first=False, **terms):
    chunking = Chunking(chunk, vocab_last=vocab_last, weighted_first=weighted_first)

    def loss(hidden, head, targets, weights):
        pair, metrics = cross_entropy(hidden, head, targets, weights, chunking=chunking, **terms)
        return cotangent * pair.sum, (pair, metrics)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays)


@pytest.mark.parametrize(("chunk", "vocab_last"), [(None, False), (6, False), (6, True)])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_value_and_gradients_are_those_of_a_float64_loop(terms, chunk, vocab_last):
    arrays = inputs()
    total, entropy, correct, *gradients = reference(*arrays, **terms)
    (_, (loss, metrics)), found = value_and_gradients(arrays, chunk=chunk, vocab_last=vocab_last, **terms)
    np.testing.assert_allclose(loss.sum, total, rtol=2e-6)
    np.testing.assert_allclose(metrics["cross_entropy"].sum, entropy, rtol=2e-6)
    np.testing.assert_allclose(metrics["accuracy"].sum, correct, rtol=2e-6)
    for pair in (loss, *metrics.values()):
        np.testing.assert_allclose(pair.weight, UNEQUAL.sum(), rtol=1e-6)
    for wanted, gradient in zip(gradients, found, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * abs(wanted).max())
    small = np.abs(gradients[0][1])  # row 1, whose weights are a millionth of row 0's
    np.testing.assert_allclose(found[0][1], gradients[0][1], rtol=1e-4, atol=1e-5 * small.max())


@pytest.mark.parametrize("zeros", [0, 5, 17, 35, 36])
@pytest.mark.parametrize("chunk", [None, 7])
def test_chunks_without_a_weight_are_left_out_and_change_nothing(zeros, chunk):
    hidden, head, targets, weights = inputs(weights=np.linspace(0.5, 1.5, B * T).reshape(B, T).astype(np.float32))
    order = np.random.default_rng(1).permutation(weights.size)
    weights = jnp.asarray(weights).reshape(-1).at[order[:zeros]].set(0.0).reshape(weights.shape)
    hidden = jnp.where(weights[..., None] == 0, 1e3 * hidden, hidden)
    found = value_and_gradients((hidden, head, targets, weights), chunk=chunk, weighted_first=True, **TERMS["all"])
    wanted = value_and_gradients((hidden, head, targets, weights), chunk=chunk, **TERMS["all"])
    assert (zeros < weights.size) == bool(jnp.abs(wanted[1][0]).max() > 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


def test_the_head_is_not_computed_for_chunks_without_a_weight(monkeypatch):
    hidden, head, targets, weights = inputs()
    computed = []
    whole = chunked._chunk

    def counted(*arguments):
        jax.debug.callback(lambda: computed.append(1))
        return whole(*arguments)

    monkeypatch.setattr(chunked, "_chunk", counted)
    for weighted, chunks in ((36, 4), (18, 2), (10, 2), (9, 1), (0, 0)):
        some = jnp.where(jnp.arange(36).reshape(weights.shape) % 36 < weighted, 1.0, 0.0)
        jax.block_until_ready(value_and_gradients((hidden, head, targets, some), chunk=9, weighted_first=True))
        jax.effects_barrier()
        assert len(computed) == chunks
        computed.clear()


def naive(hidden, head, targets, weights, z_loss=0.0, label_smoothing=0.0, valid_vocab=None):
    logits = jnp.einsum("btd,vd->btv", hidden, head)[..., :valid_vocab]
    log_z = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    mixed = (1 - label_smoothing) * chosen + label_smoothing * logits.mean(-1)
    return (weights * (log_z - mixed + z_loss * log_z**2)).sum()


@pytest.mark.parametrize("chunk", [None, 6])
def test_gradients_follow_the_cotangent_as_autodiff_of_the_plain_form_does(chunk):
    arrays = inputs()

    def through(loss):
        """The loss's cotangent is neither 1 nor constant here."""
        return lambda *a: jnp.log1p(0.3 * loss(*a))

    terms = TERMS["all"]
    ours = through(lambda *a: cross_entropy(*a, chunking=Chunking(chunk), **terms)[0].mean())
    plain = through(lambda *a: naive(*a, **terms) / a[-1].sum())
    found, wanted = (jax.jit(jax.grad(loss, (0, 1)))(*arrays) for loss in (ours, plain))
    for gradient, expected in zip(found, wanted, strict=True):
        scale = float(jnp.abs(expected).max())
        assert scale > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize(("chunk", "vocab_last"), [(None, False), (6, False), (6, True)])
def test_a_bias_and_a_scale_of_the_logits_are_those_of_autodiff(chunk, vocab_last):
    hidden, table, targets, weights = inputs()
    bias = jnp.asarray(np.random.default_rng(3).normal(size=V), jnp.float32)
    terms, chunking = TERMS["all"], Chunking(chunk, vocab_last=vocab_last)

    def ours(hidden, table, bias):
        head = LogitHead(table, bias, 0.35)
        return chunked.cross_entropy(hidden, head, targets, weights, chunking=chunking, **terms)[0].mean()

    def plain(hidden, table, bias):
        one = jnp.ones((*hidden.shape[:2], 1))  # the bias as one more column of the table
        wide = jnp.concatenate([0.35 * hidden, one], -1), jnp.concatenate([table, bias[:, None]], -1)
        return naive(*wide, targets, weights, **terms) / weights.sum()

    (value, found), (wanted, expected) = (
        jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, table, bias) for loss in (ours, plain)
    )
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for gradient, other in zip(found, expected, strict=True):
        scale = float(jnp.abs(other).max())
        assert scale > 1e-3
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6 * scale)
    assert not found[2][33:].any()


@pytest.mark.parametrize(("chunk", "vocab_last"), [(None, False), (6, True)])
def test_a_cap_of_the_logits_is_that_of_autodiff(chunk, vocab_last):
    hidden, table, targets, weights = inputs()
    cap, chunking = 1.7, Chunking(chunk, vocab_last=vocab_last)

    def ours(hidden, table):
        head = LogitHead(table, None, 0.9, cap)
        return chunked.cross_entropy(hidden, head, targets, weights, chunking=chunking, **TERMS["all"])[0].mean()

    def plain(hidden, table):
        logits = cap * jnp.tanh(0.9 * jnp.einsum("btd,vd->btv", hidden, table) / cap)
        return naive(logits, jnp.eye(V), targets, weights, **TERMS["all"]) / weights.sum()

    (value, found), (wanted, expected) = (
        jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, table) for loss in (ours, plain)
    )
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for gradient, other in zip(found, expected, strict=True):
        scale = float(jnp.abs(other).max())
        assert scale > 1e-3
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("chunk", [None, 6])
def test_a_batch_without_weight_has_loss_zero_and_no_gradient(chunk):
    arrays = inputs(weights=np.zeros((B, T), np.float32))
    (_, (loss, metrics)), gradients = value_and_gradients(arrays, chunk=chunk, **TERMS["all"])
    assert [float(pair.mean()) for pair in (loss, *metrics.values())] == [0, 0, 0]
    assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_bfloat16_states_give_a_float32_loss_and_gradients_within_bfloat16s_rounding():
    arrays = inputs(jnp.bfloat16)
    total, entropy, _, *gradients = reference(*arrays, **TERMS["all"])
    (_, (loss, metrics)), found = value_and_gradients(arrays, chunk=6, **TERMS["all"])
    assert loss.sum.dtype == jnp.float32
    # bfloat16 logits alone would be wrong by about 1e-3.
    np.testing.assert_allclose(loss.sum, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"].sum, entropy, rtol=1e-5)
    for wanted, gradient in zip(gradients, found, strict=True):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient, np.float32), wanted, rtol=0.02, atol=0.01 * abs(wanted).max())


def test_a_float32_head_keeps_what_bfloat16_states_add_up_to():
    hidden, head, *rest = inputs(jnp.bfloat16)
    gradient = value_and_gradients((hidden, head.astype(jnp.float32), *rest), chunk=6)[1][1]
    assert gradient.dtype == jnp.float32
    kept = gradient != gradient.astype(jnp.bfloat16)
    assert kept.mean() > 0.9  # each is a sum of many products, which is not rounded once more


def test_rows_beyond_the_valid_vocabulary_change_nothing_and_get_no_gradient():
    hidden, head, targets, weights = inputs()
    padded = head.at[33:].set(50.0)  # rows that would win every softmax
    (value, _), (grad_hidden, grad_head) = value_and_gradients((hidden, padded, targets, weights), valid_vocab=33)
    (cut_value, _), (cut_hidden, cut_head) = value_and_gradients((hidden, head[:33], targets, weights))
    np.testing.assert_allclose(value, cut_value, rtol=1e-6)
    np.testing.assert_allclose(grad_hidden, cut_hidden, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_head[:33], cut_head, rtol=1e-4, atol=1e-4)
    assert not np.asarray(grad_head[33:]).any()


@pytest.mark.parametrize("chunk", [1, 5, 9, 12, 35, 36, 1000])
def test_any_chunk_gives_the_same_loss_and_gradients(chunk):
    arrays = inputs()
    (whole, _), wanted = value_and_gradients(arrays, chunk=1000, **TERMS["all"])
    (value, _), found = value_and_gradients(arrays, chunk=chunk, **TERMS["all"])
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    for gradient, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 9, 17, 18, 35, 36, 37])
def test_no_more_logits_are_made_at_once_than_the_chunk_allows(chunk):
    """Read off the traced gradient: the largest array with a vocabulary axis has at most `chunk` tokens."""
    traced = str(jax.make_jaxpr(functools.partial(value_and_gradients, chunk=chunk))(inputs()))
    shapes = re.findall(rf"f32\[(\d+),(\d+),{V}\]", traced)
    tokens = max(int(rows) * int(times) for rows, times in shapes)
    allowed = [B * t for t in range(1, T + 1) if T % t == 0 and B * t <= max(chunk, B)]
    assert tokens == max(allowed)


@pytest.mark.parametrize(("length", "chunk", "count"), [(12, 6, 6), (251, 96, 8), (251, None, 3), (256, 400, 2)])
def test_a_length_that_few_chunks_divide_is_filled_up(length, chunk, count):
    assert chunk_count(3, length, 40, Chunking(chunk)) == count


def test_chunks_that_are_filled_up_give_the_same_loss_and_gradients():
    arrays = [x if x.ndim == 2 and len(x) == V else x[:, :11] for x in inputs()]
    (whole, _), wanted = value_and_gradients(arrays, chunk=1000, **TERMS["all"])
    (value, _), found = value_and_gradients(arrays, chunk=9, **TERMS["all"])
    assert chunk_count(B, 11, V, Chunking(9)) == 4
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    for gradient, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * float(jnp.abs(expected).max()))


def temporary_bytes(tokens_per_row, vocab, chunk):
    shapes = [((4, tokens_per_row, 16), jnp.float32), ((vocab, 16), jnp.float32)]
    shapes += [((4, tokens_per_row), jnp.int32), ((4, tokens_per_row), jnp.float32)]
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    loss = functools.partial(cross_entropy, chunking=Chunking(chunk))
    compiled = jax.jit(jax.grad(lambda *a: loss(*a)[0].sum, (0, 1))).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_for_the_chunked_gradient_is_a_chunk_of_logits_and_not_all_of_them():
    all_logits = 4 * 512 * 4096 * 4  # bytes in float32
    assert temporary_bytes(512, 4096, chunk=4 * 512) >= all_logits
    assert temporary_bytes(512, 4096, chunk=4 * 16) < all_logits / 8


def test_by_default_a_large_vocabulary_is_cut_without_being_told():
    """GPT-2's vocabulary over 32k tokens: 6.6 GB of float32 logits."""
    assert temporary_bytes(8192, 50304, chunk=None) < 4 * LOGITS_AT_ONCE * 4


def test_chunks_on_a_mesh_leave_rows_and_time_where_they_are():
    """Every device has its share of every chunk: hidden states are never gathered."""
    mesh = make_mesh(MeshSettings(data=2, sequence=2), jax.devices()[:4])
    hidden, head, targets, weights = inputs()
    hidden, targets, weights = (jnp.concatenate([x, x[:1]]) for x in (hidden, targets, weights))
    loss = on_mesh(lambda *a: cross_entropy(*a, chunking=Chunking(1), **TERMS["all"])[0].sum, mesh)
    placed = [jax.device_put(x, batch_sharding(mesh)) for x in (hidden, targets, weights)]
    arrays = (placed[0], head, *placed[1:])
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
    assert "while(" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
    value, gradients = compiled(*arrays)
    single = jax.jit(jax.value_and_grad(lambda *a: cross_entropy(*a, **TERMS["all"])[0].sum, (0, 1)))
    wanted, expected = single(hidden, head, targets, weights)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6 * float(jnp.abs(other).max()))
