"""AdamW against a NumPy loop, what is decayed, and clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.families import model_of
from lmjax.model.presets import preset
from lmjax.optim.optimizer import decay_mask, make_optimizer
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    FeedForwardSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    PositionSettings,
)

AXES = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
SETTINGS = OptimizerSettings(b1=0.9, b2=0.99, eps=1e-4, weight_decay=0.1, clip_norm=None)


def schedule(step):
    return jnp.asarray(0.01, jnp.float32) * (step + 1)


def problem(updates=6):
    """Parameters, and gradients of very different sizes: some below eps."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    scales = {"kernel": 10.0 ** rng.integers(-6, 2, (3, 4)), "bias": np.ones(4)}
    grads = [{name: rng.normal(size=p.shape) * scales[name] for name, p in params.items()} for _ in range(updates)]
    as_float32 = lambda tree: jax.tree.map(lambda x: x.astype(np.float32), tree)  # noqa: E731
    return as_float32(params), as_float32(grads)


def trained(settings, params, grads):
    optimizer = make_optimizer(settings, schedule, AXES)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step, grad in enumerate(grads):
        updates, state = update(grad, state, params, step=step)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params, state


def adamw_loop(settings, params, grads):
    """Loshchilov & Hutter 2019, algorithm 2, in float64; only the kernel is decayed."""
    params = {name: p.astype(np.float64) for name, p in params.items()}
    m, v = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for t, grad in enumerate(grads, start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grad.values()))
        clip = min(1.0, (settings.clip_norm or np.inf) / norm)
        for name, p in params.items():
            g = grad[name].astype(np.float64) * clip
            m[name] = settings.b1 * m[name] + (1 - settings.b1) * g
            v[name] = settings.b2 * v[name] + (1 - settings.b2) * g * g
            corrected = (1 - settings.b1**t, 1 - settings.b2**t) if settings.bias_correction else (1, 1)
            step = m[name] / corrected[0] / (np.sqrt(v[name] / corrected[1]) + settings.eps)
            decay = settings.weight_decay * p if name == "kernel" else 0
            params[name] = p - 0.01 * t * (step + decay)
    return params


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_is_the_papers_loop_and_berts_without_bias_correction(bias_correction, clip_norm):
    settings = dataclasses.replace(SETTINGS, bias_correction=bias_correction, clip_norm=clip_norm)
    params, grads = problem()
    found, _ = trained(settings, params, grads)
    wanted = adamw_loop(settings, params, grads)
    for name, p in found.items():
        np.testing.assert_allclose(p - params[name], wanted[name] - params[name], rtol=2e-4, atol=1e-6)


def test_weight_decay_neither_passes_through_the_moments_nor_touches_the_bias():
    params, _ = problem()
    zeros = jax.tree.map(np.zeros_like, params)
    found, _ = trained(SETTINGS, params, [zeros])
    np.testing.assert_allclose(found["kernel"], params["kernel"] * (1 - 0.01 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(found["bias"], params["bias"])


def test_clipping_scales_all_gradients_by_one_factor_and_only_when_their_norm_is_too_large():
    """Adam without memory and with a large eps is a plain gradient step, so that the factor shows."""
    settings = dataclasses.replace(SETTINGS, b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0, clip_norm=5.0)
    grad = {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)}
    grad["kernel"][0, 0], grad["bias"][0] = 6.0, 8.0  # a norm of 10
    params = jax.tree.map(np.zeros_like, grad)
    for factor, size in ((0.5, 1.0), (1.0, 0.4)):
        found, _ = trained(settings, params, [jax.tree.map(lambda g, size=size: g * np.float32(size), grad)])
        np.testing.assert_allclose(found["kernel"][0, 0], -0.01 * factor * size * 6.0 / 1e6, rtol=1e-5)
        np.testing.assert_allclose(found["bias"][0], -0.01 * factor * size * 8.0 / 1e6, rtol=1e-5)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_a_bfloat16_state_is_the_first_moment_alone_and_changes_updates_by_its_rounding(bias_correction):
    params, grads = problem()
    exact = dataclasses.replace(SETTINGS, bias_correction=bias_correction, weight_decay=0.0)
    wanted, _ = trained(exact, params, grads)
    found, state = trained(dataclasses.replace(exact, state_dtype="bfloat16"), params, grads)
    adam = state[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype("float32")}
    for name, p in found.items():
        assert p.dtype == jnp.float32
        moved = wanted[name] - params[name]
        np.testing.assert_allclose(p - params[name], moved, rtol=0.02, atol=0.01 * float(jnp.abs(moved).max()))
        assert not np.array_equal(p, wanted[name])


def test_the_rate_is_that_of_the_step_and_not_of_the_updates_made():
    """A skipped step leaves the state alone, and must not set the schedule back."""
    params, grads = problem(1)
    optimizer = make_optimizer(SETTINGS, schedule, AXES)
    early, _ = optimizer.update(grads[0], optimizer.init(params), params, step=0)
    late, _ = optimizer.update(grads[0], optimizer.init(params), params, step=9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 10 * a, rtol=1e-5), early, late)


VARIANTS = {
    "gpt2": ModelSettings(layers=2, vocab_size=64),
    "banded": ModelSettings(layers=4, vocab_size=64, attention=AttentionSettings(pattern=("dense", "banded"), band=8)),
    "llama": ModelSettings(
        layers=2,
        vocab_size=64,
        attention=AttentionSettings(heads=4, kv_heads=2, bias=False),
        feed_forward=FeedForwardSettings(gated=True, activation="silu", bias=False),
        norm=NormSettings(kind="rmsnorm"),
        positions=PositionSettings(kind="rotary"),
        tied_head=False,
    ),
    "relative": ModelSettings(layers=2, vocab_size=64, positions=PositionSettings(kind="relative")),
    "bert": dataclasses.replace(preset("bert_tiny"), vocab_size=64),
    "t5": dataclasses.replace(preset("t5_small"), layers=2, encoder_layers=2, width=64, vocab_size=64),
}
TABLES = ("tokens", "positions", "segment_types", "table")


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_matrices_are_decayed_norms_and_biases_never_and_embeddings_when_asked(name, scan_layers):
    axes = model_of(VARIANTS[name], ComputeSettings(scan_layers=scan_layers)).logical_axes()
    for decay_embeddings in (False, True):
        mask = jax.tree_util.tree_leaves_with_path(decay_mask(axes, decay_embeddings))
        decayed = {path[-1].key: value for path, value in mask}
        kinds = {"kernel": True, "head": True, "bias": False, "head_bias": False, "scale": False} | dict.fromkeys(
            TABLES, decay_embeddings
        )
        assert decayed == {leaf: kinds[leaf] for leaf in decayed}
        assert all(value == kinds[path[-1].key] for path, value in mask)
    assert {"kernel", "scale", "tokens"} <= set(decayed)


def test_a_bias_over_the_vocabulary_is_a_bias():
    assert decay_mask({"bias": ("vocab",)}, decay_embeddings=True) == {"bias": False}
