"""Norms where a row's mean is large beside its deviation, against float64 and beside LayerNorm in two passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model import layers
from lmjax.model.language_model import LanguageModel
from lmjax.model.normalize import normalize
from lmjax.model.remat import REMAT_POLICIES
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings

EPS = 1e-5


def two_passes(x, scale, bias, *_):
    """LayerNorm as it is usually written: the mean first, then the mean square of what is left."""
    away = x - x.mean(-1, keepdims=True)
    y = away * jax.lax.rsqrt((away**2).mean(-1, keepdims=True) + EPS) * jnp.broadcast_to(scale, x.shape)
    return y + jnp.broadcast_to(bias, x.shape)


def exact(x, scale, bias, gradient):
    """The value and the gradients of x, scale and bias in float64."""
    x, scale, bias, gradient = (np.asarray(a, np.float64) for a in (x, scale, bias, gradient))
    away = x - x.mean(-1, keepdims=True)
    rate = 1 / np.sqrt((away**2).mean(-1, keepdims=True) + EPS)
    standard, inner = away * rate, gradient * scale
    along = (inner * standard).mean(-1, keepdims=True)
    dx = (inner - standard * along - inner.mean(-1, keepdims=True)) * rate
    return standard * scale + bias, dx, (gradient * standard).sum(0), gradient.sum(0)


def arrays(ratio, width=768, rows=64):
    keys = jax.random.split(jax.random.key(int(ratio)), 4)
    x = ratio + jax.random.normal(keys[0], (rows, width))
    scale, bias = 1 + 0.1 * jax.random.normal(keys[1], (width,)), jax.random.normal(keys[2], (width,))
    return x, scale, bias, jax.random.normal(keys[3], x.shape)


def errors(function, x, scale, bias, gradient):
    """The largest error of the value and of each gradient."""

    @jax.jit
    def both(x, scale, bias, gradient):
        y, pull = jax.vjp(function, x, scale, bias)
        return y, *pull(gradient)

    found, expected = both(x, scale, bias, gradient), exact(x, scale, bias, gradient)
    return [float(np.abs(np.asarray(a, np.float64) - b).max()) for a, b in zip(found, expected, strict=True)]


def layer_norm(materialize):
    return lambda x, scale, bias: normalize(x, scale, bias, EPS, True, materialize)


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("ratio", [-3000.0, 100.0, 1000.0, 3000.0])
def test_a_mean_that_is_large_beside_the_deviation_costs_no_more_than_in_two_passes(ratio, materialize):
    given = arrays(ratio)
    found, usual = errors(layer_norm(materialize), *given), errors(two_passes, *given)
    for name, error, limit in zip(("y", "dx", "dscale", "dbias"), found, usual, strict=True):
        assert error <= 3 * limit, name


@pytest.mark.parametrize("where", [slice(0, 1), slice(0, 128), slice(130, 131), slice(128, 768)], ids=str)
@pytest.mark.parametrize("far", [30.0, 3000.0])
def test_elements_far_from_their_row_cost_no_more_than_in_two_passes(where, far):
    """Also where they are those that the row is shifted by."""
    x, scale, bias, gradient = arrays(1000.0)
    given = x.at[:, where].add(far), scale, bias, gradient
    found, usual = errors(layer_norm(False), *given), errors(two_passes, *given)
    for name, error, limit in zip(("y", "dx", "dscale", "dbias"), found, usual, strict=True):
        assert error <= 10 * limit, name


@pytest.mark.parametrize("width", [1, 2, 100, 127, 128, 129, 640])
def test_a_row_of_any_width_is_shifted(width):
    given = arrays(1000.0, width)
    found, usual = errors(layer_norm(False), *given), errors(two_passes, *given)
    for error, limit in zip(found, usual, strict=True):
        assert error <= 10 * max(limit, 1e-6)


@pytest.mark.parametrize("ratio", [1000.0, 3000.0])
def test_what_a_remat_policy_keeps_of_a_norm_is_as_exact(ratio):
    given = arrays(ratio)
    usual = errors(two_passes, *given)
    for policy in (None, *REMAT_POLICIES.values()):
        found = errors(jax.checkpoint(layer_norm(False), policy=policy), *given)
        for error, limit in zip(found, usual, strict=True):
            assert error <= 3 * limit


@pytest.mark.parametrize("ratio", [0.0, 10.0, -100.0])
def test_bfloat16_rows_are_normalised_to_their_own_rounding(ratio):
    x, scale, bias, gradient = arrays(ratio)
    x, gradient = x.astype(jnp.bfloat16), gradient.astype(jnp.bfloat16)
    y, pull = jax.vjp(layer_norm(False), x, scale, bias)
    wanted = exact(x, scale, bias, gradient)
    for found, value in zip((y, *pull(gradient)), wanted, strict=True):
        rounding = 2.0**-8 * np.abs(value).max()
        assert np.abs(np.asarray(found, np.float64) - value).max() <= rounding


def test_equal_elements_become_the_bias():
    x = jnp.broadcast_to(jnp.asarray([1000.1, -3e4, 0.1, 0.0], jnp.float32)[:, None], (4, 768))
    scale, bias = jnp.full(768, 1.7), jnp.linspace(-1, 1, 768)
    found = normalize(x, scale, bias, EPS, True, False)
    np.testing.assert_allclose(found, jnp.broadcast_to(bias, x.shape), atol=1e-5)


def test_a_constant_in_every_position_s_vector_moves_the_logits_as_little_as_in_two_passes(monkeypatch):
    """In exact arithmetic it moves nothing: everything that reads the residual stream takes its mean away first."""
    settings = ModelSettings(layers=2, width=64, context=16, vocab_size=61, attention=AttentionSettings(heads=4))
    model = LanguageModel(settings, ComputeSettings(dtype="float32"))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    moved = params | {"positions": params["positions"] + 1000.0}
    params = params | {"positions": moved["positions"] - 1000.0}  # rounded as those are
    tokens = rng.integers(0, 61, (2, 16)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
        "segments": np.ones((2, 16), np.int32),
    }

    def change():
        logits = jax.jit(lambda params: model.logits(params, batch))  # traced anew each time
        before, after = logits(params), logits(moved)
        assert np.abs(before).max() > 1
        return float(np.abs(before - after).max())

    ours = change()
    monkeypatch.setattr(layers, "normalize", two_passes)
    usual = change()
    assert ours < 3 * usual < 0.02
