"""Log-probabilities per token: equal to the plain computation, in any number of chunks, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.logit_head import LogitHead
from lmjax.model.transformer import Chunking
from lmjax.objective import log_probs as chunked


def token_log_probs(hidden, table, *rest, **settings):
    """Of a head that is a table alone."""
    return chunked.token_log_probs(hidden, LogitHead(table), *rest, **settings)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 8, 6)).astype(np.float32), rng.normal(size=(11, 6)).astype(np.float32)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(rng.integers(0, 9, (3, 8)), jnp.int32)


def plain(hidden, head, targets, temperature, vocab):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)[:vocab].T / temperature
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
    return chosen, -(np.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [None, 12, 6, 3])
@pytest.mark.parametrize(("temperature", "vocab"), [(1.0, None), (0.7, 9)])
def test_they_are_those_of_the_softmax_over_real_rows_under_the_temperature(arrays, chunk, temperature, vocab):
    got = token_log_probs(*arrays, temperature=temperature, valid_vocab=vocab, chunking=Chunking(chunk))
    for array, expected in zip(got, plain(*arrays, temperature, vocab or 11), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "chunking", [Chunking(), Chunking(24), Chunking(12), Chunking(12, vocab_last=True), Chunking(3)]
)
@pytest.mark.parametrize("length", [8, 7])  # 7 tokens of a row are cut into chunks with zeros behind them
@pytest.mark.parametrize(("of_log_probs", "of_entropy"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.1)])
def test_gradients_are_those_of_autodiff_of_the_plain_form(arrays, chunking, length, of_log_probs, of_entropy):
    hidden, head, targets = arrays[0][:, :length], arrays[1], arrays[2][:, :length]
    weights = jnp.arange(3.0 * length).reshape(3, length) - 5.0

    def total(read):
        def sums(hidden, head):
            log_probs, entropy = read(hidden, head)
            first = (log_probs * weights).sum() if of_log_probs else 0.0
            return of_log_probs * first + of_entropy * (entropy * jnp.cos(weights)).sum()

        return jax.jit(jax.grad(sums, argnums=(0, 1)))(hidden, head)

    def by_autodiff(hidden, head):
        log_p = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, head[:9]) / 0.7)
        chosen = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        return chosen, -(jnp.exp(log_p) * log_p).sum(-1)

    found = total(lambda *a: token_log_probs(*a, targets, temperature=0.7, valid_vocab=9, chunking=chunking))
    for gradient, expected in zip(found, total(by_autodiff), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    assert not found[1][9:].any()


@pytest.mark.parametrize("zeros", [0, 7, 16, 24])
def test_tokens_of_weight_zero_are_left_out_and_the_others_are_as_they_were(arrays, zeros):
    weights = jnp.ones(24).at[np.random.default_rng(2).permutation(24)[:zeros]].set(0.0).reshape(3, 8)

    def read(hidden, head, chunking):
        found = token_log_probs(hidden, head, arrays[2], weights, temperature=0.7, chunking=chunking)
        masked = [jnp.where(weights > 0, each, 0.0) for each in found]
        return sum((each * jnp.cos(jnp.arange(24.0).reshape(3, 8))).sum() for each in masked), masked

    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(read, chunking=chunking), (0, 1), has_aux=True))(*arrays[:2])
        for chunking in (Chunking(5, weighted_first=True), Chunking(5))
    )
    assert (zeros < 24) == bool(jnp.abs(wanted[1][0]).max() > 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


@pytest.mark.parametrize("cap", [None, 1.7])
@pytest.mark.parametrize("chunk", [None, 6])
def test_a_bias_a_scale_and_a_cap_of_the_logits_are_those_of_the_plain_form(arrays, chunk, cap):
    hidden, table, targets = arrays
    bias = jnp.asarray(np.random.default_rng(3).normal(size=11), jnp.float32)

    def ours(hidden, table, bias):
        head = LogitHead(table, bias, 0.35, cap)
        found = chunked.token_log_probs(hidden, head, targets, temperature=0.7, chunking=Chunking(chunk))
        return sum((each * jnp.cos(jnp.arange(24.0).reshape(3, 8))).sum() for each in found)

    def by_autodiff(hidden, table, bias):
        logits = 0.35 * jnp.einsum("btd,vd->btv", hidden, table) + bias[None, None]
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        log_p = jax.nn.log_softmax(logits / 0.7)
        chosen = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        found = chosen, -(jnp.exp(log_p) * log_p).sum(-1)
        return sum((each * jnp.cos(jnp.arange(24.0).reshape(3, 8))).sum() for each in found)

    (value, found), (wanted, expected) = (
        jax.value_and_grad(loss, (0, 1, 2))(hidden, table, bias) for loss in (ours, by_autodiff)
    )
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for gradient, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)
