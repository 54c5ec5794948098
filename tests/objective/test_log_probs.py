"""Log-probabilities per token: equal to the plain computation, in any number of chunks, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objective.log_probs import token_log_probs


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
    got = token_log_probs(*arrays, temperature=temperature, valid_vocab=vocab, chunk=chunk)
    for array, expected in zip(got, plain(*arrays, temperature, vocab or 11), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [12, 3])
def test_the_gradient_does_not_depend_on_the_chunks(arrays, chunk):
    hidden, head, targets = arrays

    def total(hidden, head, chunk):
        log_probs, entropy = token_log_probs(hidden, head, targets, valid_vocab=9, chunk=chunk)
        return (log_probs * jnp.arange(24.0).reshape(3, 8)).sum() + 0.1 * entropy.sum()

    whole = jax.grad(total, argnums=(0, 1))(hidden, head, None)
    parts = jax.grad(total, argnums=(0, 1))(hidden, head, chunk)
    for a, b in zip(parts, whole, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not parts[1][9:].any()
