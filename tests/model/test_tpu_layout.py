"""What is arranged for the TPU's compiler, run here on the CPU, changes neither parameters, loss nor gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS
from lmjax.model.language_model import LanguageModel
from lmjax.model.normalize import normalize
from lmjax.objective.next_token import language_loss
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import on_mesh
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    HeadSettings,
    MeshSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    RotaryScaling,
    ScoreSettings,
)

B, T = 3, 16


def batch(vocab):
    tokens = jax.random.randint(jax.random.key(1), (B, T + 1), 0, vocab)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    segments = jnp.where(positions < jnp.array([[5], [16], [9]]), 1, 2)
    return {
        TOKENS: tokens[:, :-1],
        TARGETS: tokens[:, 1:],
        WEIGHTS: (positions != 3).astype(jnp.float32),
        POSITIONS: positions,
        SEGMENTS: segments,
    }


PLAIN = ModelSettings(2, 32, T, 61, attention=AttentionSettings(heads=4, kv_heads=2, implementation="einsum"))
SETTINGS = {
    "layernorm": PLAIN,
    "rmsnorm": dataclasses.replace(PLAIN, norm=NormSettings(kind="rmsnorm")),
    "norms of heads and branches, capped": dataclasses.replace(
        PLAIN,
        attention=dataclasses.replace(PLAIN.attention, qk_norm="head", out_bias=False, scores=ScoreSettings(cap=2.0)),
        norm=NormSettings(kind="rmsnorm", position="sandwich", unit_offset=True),
        positions=PositionSettings(kind="rotary", rotary_scaling=RotaryScaling(kind="yarn", factor=2.0, amplitude=1.1)),
        head=HeadSettings(logit_cap=3.0),
    ),
}


@pytest.mark.parametrize(("kind", "remat"), [*zip(SETTINGS, ("projections", "none", "none"), strict=True)])
def test_a_model_for_the_tpu_has_the_loss_and_gradients_of_one_for_the_cpu(kind, remat):
    settings = SETTINGS[kind]
    compute = ComputeSettings(dtype="float32", remat=remat)
    cpu, tpu = (LanguageModel(settings, compute, platform) for platform in ("cpu", "tpu"))
    params = cpu.init(jax.random.key(0))
    # every bias and scale away from its first value, so that nothing is hidden by a zero or a one
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    rows = batch(61)

    assert_same(gradients(tpu, rows)(params), gradients(cpu, rows)(params))


@pytest.mark.parametrize("axes", [{"data": 4, "tensor": 2}, {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}])
def test_on_a_mesh_every_device_lays_out_its_part_of_the_stream(axes):
    compute = ComputeSettings(dtype="float32", remat="none")
    cpu, tpu = (LanguageModel(PLAIN, compute, platform) for platform in ("cpu", "tpu"))
    params, rows = cpu.init(jax.random.key(0)), jax.tree.map(lambda x: jnp.resize(x, (4, T)), batch(61))
    step = on_mesh(gradients(tpu, rows), make_mesh(MeshSettings(**axes)))
    text = jax.jit(step).lower(params).as_text()
    places = axes.get("data", 1) * axes.get("fsdp", 1), axes.get("sequence", 1) * axes["tensor"]
    shard = f"{4 // places[0]}x{T // places[1]}x{PLAIN.width}xf32"
    asked = [line for line in text.splitlines() if "@LayoutConstraint" in line]
    assert asked and all(f"tensor<{shard}>" in line for line in asked)
    assert_same(jax.jit(step)(params), gradients(cpu, rows)(params))


def test_rows_that_a_mesh_does_not_divide_are_laid_out_as_the_compiler_likes():
    model, rows = LanguageModel(PLAIN, ComputeSettings(dtype="float32"), "tpu"), batch(61)
    params = model.init(jax.random.key(0))
    found = jax.jit(on_mesh(lambda p: model.logits(p, rows), make_mesh(MeshSettings(data=8))))
    assert "@LayoutConstraint" not in found.lower(params).as_text()
    np.testing.assert_allclose(found(params), model.logits(params, rows), rtol=1e-5, atol=1e-6)


def test_the_few_tokens_of_a_step_of_decoding_are_laid_out_as_the_compiler_likes():
    def text(length):
        model, rows = LanguageModel(PLAIN, ComputeSettings(), "tpu"), {k: v[:, :length] for k, v in batch(61).items()}
        params = model.init(jax.random.key(0))
        return jax.jit(lambda p: model.logits(p, rows)).lower(params).as_text()

    assert "@LayoutConstraint" in text(8) and "@LayoutConstraint" not in text(4)


def gradients(model, rows):
    loss_fn = language_loss(model)
    return jax.jit(jax.value_and_grad(lambda p: loss_fn(p, rows, None)[0].sum))


def assert_same(found, wanted):
    (loss, grads), (expected_loss, expected) = found, wanted
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        other = dict(jax.tree_util.tree_leaves_with_path(grads))[path]
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(other, leaf, atol=2e-5 * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_the_gradient_of_a_norm_is_that_of_its_formula(centered, materialize):
    keys = jax.random.split(jax.random.key(0), 4)
    x, g = jax.random.normal(keys[0], (2, 5, 24)) * 3 + 1, jax.random.normal(keys[1], (2, 5, 24))
    scale = jax.random.normal(keys[2], (24,))
    bias = jax.random.normal(keys[3], (24,)) if centered else None

    def formula(x, scale, bias):
        mean = x.mean(-1, keepdims=True) if centered else 0.0
        y = (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3) * scale[None, None]
        return y if bias is None else y + bias[None, None]

    def gradients(function):
        wrt = (0, 1, 2) if centered else (0, 1)
        return jax.grad(lambda *arguments: (function(*arguments) * g).sum(), wrt)(x, scale, bias)

    ours = gradients(lambda x, scale, bias: normalize(x, scale, bias, 1e-3, centered, materialize))
    for got, expected in zip(ours, gradients(formula), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_statistics_are_float32_under_bfloat16():
    # a mean of 64 beside a spread of 1: squares of 4,096 lose the spread in bfloat16
    x = (64 + jax.random.normal(jax.random.key(0), (4, 512))).astype(jnp.bfloat16)
    y = normalize(x, jnp.ones(512), jnp.zeros(512), 1e-5, True, False).astype(jnp.float32)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=0.03)
