"""Projections, norms, activations and dropout against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from lmjax.model.layers import ACTIVATIONS, Dense, Norm, dropout
from lmjax.settings import NormSettings

X = np.linspace(-4, 4, 81)
EXPECTED = {
    "gelu_tanh": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),  # Hendrycks & Gimpel 2016
    "gelu_erf": 0.5 * X * (1 + erf(X / math.sqrt(2))),
    "relu": np.maximum(X, 0),
    "silu": X / (1 + np.exp(-X)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name):
    # The two GELUs differ by up to 4.7e-4, so that 2e-6 tells them apart.
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), EXPECTED[name], atol=2e-6)


def test_every_activation_is_tested():
    assert set(ACTIVATIONS) == set(EXPECTED)


@pytest.mark.parametrize("eps", [1e-5, 1e-12, 1e-6])
@pytest.mark.parametrize(("kind", "bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", True)])
def test_a_norm_is_its_formula_with_its_own_eps(kind, bias, eps):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 16)) * np.array([[1.0], [3e-3], [1e-5]])).astype(np.float32)  # small rows show the eps
    scale, shift = rng.normal(size=16).astype(np.float32), rng.normal(size=16).astype(np.float32)
    params = {"scale": scale, "bias": shift} if kind == "layernorm" and bias else {"scale": scale}
    norm = Norm(NormSettings(kind=kind, eps=eps, bias=bias), jnp.float32)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True) if kind == "layernorm" else wide
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + (
        shift if len(params) == 2 else 0
    )
    np.testing.assert_allclose(norm.apply({"params": {"norm": params}}, x), expected, rtol=2e-4, atol=2e-5)


def test_a_norm_of_bfloat16_is_rounded_once_at_its_end():
    x = (np.random.default_rng(1).normal(size=(4, 512)) * 3 + 8).astype(jnp.bfloat16)
    norm = Norm(NormSettings(), jnp.bfloat16)
    params = {"norm": {"scale": np.full(512, 1.7, np.float32), "bias": np.full(512, 0.3, np.float32)}}
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * 1.7 + 0.3
    found = norm.apply({"params": params}, jnp.asarray(x))
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert (error <= 2**-8 * np.abs(exact) + 1e-4).all()  # half a unit in the last place of bfloat16


@pytest.mark.parametrize("features", [(6,), (2, 3, 4)])
def test_a_dense_layer_is_the_same_flattened_and_not_forward_and_backward(features):
    rng = np.random.default_rng(2)
    x, axes = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32), ("embed", *["mlp"] * len(features))
    kernel = rng.normal(size=(8, *features)).astype(np.float32)
    bias = rng.normal(size=features).astype(np.float32)
    weight = rng.normal(size=(2, 5, *features)).astype(np.float32)

    def loss(params, x, flatten):
        layer = Dense(features, axes, std=1.0, bias=True, dtype=jnp.float32, flatten=flatten)
        y = layer.apply({"params": params}, x)
        return (y * weight).sum(), y

    results = [
        jax.value_and_grad(loss, (0, 1), has_aux=True)({"kernel": kernel, "bias": bias}, x, flatten)
        for flatten in (True, False)
    ]
    np.testing.assert_allclose(results[0][0][1], np.tensordot(x, kernel, 1) + bias, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_dropout_zeroes_its_rate_and_keeps_the_mean():
    x = jnp.ones((400, 500))
    y = np.asarray(dropout(x, 0.3, jax.random.key(0), 1))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs((y == 0).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / x.size)  # four standard errors


def test_dropout_differs_between_sites_and_keys_and_is_nothing_without_a_key():
    x = jnp.ones((64, 64))
    masks = [np.asarray(dropout(x, 0.5, jax.random.key(key), site)) for key, site in ((0, 0), (0, 1), (1, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert 0.4 < (masks[one] != masks[other]).mean() < 0.6
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, jax.random.key(0), 0) is x
