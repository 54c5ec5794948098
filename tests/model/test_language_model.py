"""A model as plain functions: precision, platforms, and what is an error when it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ComputeSettings, FeedForwardSettings, ModelSettings, NormSettings

SETTINGS = ModelSettings(layers=2, width=16, context=8, vocab_size=23, attention=AttentionSettings(heads=2))
LLAMA = ModelSettings(
    layers=2,
    width=16,
    context=8,
    vocab_size=23,
    attention=AttentionSettings(heads=4, kv_heads=2, bias=False),
    feed_forward=FeedForwardSettings(gated=True, activation="silu", bias=False),
    norm=NormSettings(kind="rmsnorm"),
    tied_head=False,
)


def parameters(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def rows(length=8, segments=None):
    tokens = np.random.default_rng(1).integers(0, 23, (2, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    return {
        "tokens": tokens,
        "positions": positions,
        "segments": np.ones_like(tokens) if segments is None else segments,
    }


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("settings", [SETTINGS, LLAMA], ids=["gpt2", "llama"])
def test_softmax_norms_and_logits_are_float32_under_bfloat16_compute(settings):
    model = LanguageModel(settings, ComputeSettings(dtype="bfloat16"))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.logits)(shapes, rows())
    found = {}
    for equation in equations(jaxpr.jaxpr):
        if not equation.invars:
            continue
        found.setdefault(equation.primitive.name, set()).add(str(equation.invars[0].aval.dtype))
    assert found["exp"] == {"float32"}  # the softmax
    assert found["rsqrt"] == {"float32"}  # the norms
    assert found["reduce_max"] == {"float32"}
    assert found["dot_general"] == {"bfloat16"}  # the matmuls: this is what bfloat16 is for
    assert jaxpr.out_avals[0].dtype == jnp.float32


def test_the_logits_product_accumulates_and_returns_float32():
    """bfloat16 keeps 8 bits: logits rounded to it would lie on a grid of 1/4 around 64."""
    model = LanguageModel(SETTINGS, ComputeSettings(dtype="bfloat16"))
    hidden = jnp.full((1, 1, 16), 2.0, jnp.bfloat16)
    row = np.full(16, 2.0, np.float32)
    row[0] += 2**-6  # exact in bfloat16, and worth 2^-5 in a logit of 64
    params = {"tokens": jnp.asarray(np.tile(row, (23, 1)))}
    assert float(model.project(params, hidden)[0, 0, 0]) == 64 + 2**-5


def test_dtypes_follow_the_platform_unless_the_recipe_names_one():
    assert LanguageModel(SETTINGS).dtype == jnp.float32
    assert LanguageModel(SETTINGS, platform="tpu").dtype == jnp.bfloat16
    assert LanguageModel(SETTINGS, platform="gpu").dtype == jnp.bfloat16
    assert LanguageModel(SETTINGS, ComputeSettings(dtype="float32"), "tpu").dtype == jnp.float32


@pytest.mark.parametrize("settings", [SETTINGS, LLAMA], ids=["gpt2", "llama"])
def test_what_is_laid_out_for_other_platforms_computes_the_same(settings):
    params = parameters(LanguageModel(settings))
    compute = ComputeSettings(dtype="float32")
    expected = LanguageModel(settings, compute, "cpu").logits(params, rows())
    for platform in ("tpu", "gpu"):
        found = LanguageModel(settings, compute, platform).logits(params, rows())
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_rows_of_one_document_need_no_segments():
    """A model that is told so gives the same at every real token, whatever the padding at the end holds."""
    segments = np.array([[1] * 8, [1] * 5 + [0] * 3], np.int32)
    params = parameters(LanguageModel(SETTINGS))
    expected = LanguageModel(SETTINGS).logits(params, rows(segments=segments))
    found = LanguageModel(SETTINGS, segmented=False).logits(params, rows(segments=segments))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :5], expected[1, :5], atol=1e-5)


def test_a_model_with_splash_by_name_is_the_model_with_einsum():
    T = 128
    make = {
        name: ModelSettings(
            layers=2,
            width=16,
            context=T,
            vocab_size=23,
            attention=AttentionSettings(heads=2, pattern=("dense", "banded"), band=30, implementation=name),
        )
        for name in ("einsum", "splash")
    }
    segments = np.array([[1] * 50 + [2] * 78, [1] * 99 + [0] * 29], np.int32)
    params = parameters(LanguageModel(make["einsum"]))
    results = {
        name: np.asarray(jax.jit(LanguageModel(settings).logits)(params, rows(T, segments)))
        for name, settings in make.items()
    }
    real = (segments != 0)[:, :, None]
    np.testing.assert_allclose(results["splash"] * real, results["einsum"] * real, atol=5e-5)


def named(implementation, **heads):
    attention = AttentionSettings(heads=2, implementation=implementation, **heads)
    return ModelSettings(layers=2, width=16, context=8, vocab_size=23, attention=attention)


@pytest.mark.parametrize(
    ("settings", "platform", "reason"),
    [
        (named("cudnn"), "cpu", "cuDNN runs on GPU"),
        (named("cudnn"), "gpu", "cannot keep documents apart"),
        (named("splash"), "gpu", "splash runs on TPU"),
        (named("splash", dropout=0.1), "tpu", "dropout"),
    ],
)
def test_an_attention_that_cannot_serve_is_an_error_when_the_model_is_made(settings, platform, reason):
    with pytest.raises(UserError, match=reason):
        LanguageModel(settings, platform=platform)


def test_a_cache_is_read_whatever_kernel_is_named_for_training():
    """Prompts have any length: a model that was trained with splash answers the ones of five tokens, too."""
    models = [LanguageModel(named(name)) for name in ("einsum", "splash")]
    params, batch = parameters(models[0]), rows(5)
    arrays = (batch["tokens"], batch["positions"], batch["segments"], 0)
    found = [model.extend(params, model.empty_cache(2, 8), *arrays)[0] for model in models]
    assert (found[0] == found[1]).all()


def test_a_length_that_a_named_kernel_cannot_serve_is_an_error_before_anything_runs():
    model = LanguageModel(named("splash"), platform="tpu")
    with pytest.raises(UserError, match="sequence length 100 is not a multiple of 128"):
        model.implementation(100)
    with pytest.raises(UserError, match="sequence length 8 is not a multiple of 128"):
        jax.eval_shape(model.logits, jax.eval_shape(model.init, jax.random.key(0)), rows())


def test_a_model_without_a_vocabulary_is_an_error():
    with pytest.raises(UserError, match=r"model\.vocab_size = None"):
        LanguageModel(ModelSettings())
