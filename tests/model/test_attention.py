"""Every attention implementation against `einsum`, `einsum` against a loop, and the choice among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lmjax.errors import UserError
from lmjax.model.attention import attention, choose
from lmjax.model.masks import Mask
from lmjax.settings import AttentionSettings, ModelSettings, PositionSettings, ScoreSettings

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def ragged_segments(length):
    """Two rows of documents of unequal lengths, the second with padding at its end."""
    first = np.repeat([1, 2, 3], [length // 8 + 3, length // 2 - 11, length - length // 8 - length // 2 + 8])
    second = np.repeat([1, 2, 0], [length // 2 + 5, length // 4 - 9, length - length // 2 - length // 4 + 4])
    return jnp.asarray(np.stack([first, second]), jnp.int32)


def arrays(T, heads, kv_heads, width, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, T, h, width)), jnp.float32) for h in (heads, kv_heads, kv_heads)]


def attended_by_loop(q, k, v, seen, scale, bias, cap):
    """One query of one head at a time, in float64."""
    B, T, H, _ = q.shape
    group = H // k.shape[2]
    out = np.zeros((B, T, H, v.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        keys = np.flatnonzero(seen[b % len(seen), 0, t])
        scores = k[b, keys, h // group] @ q[b, t, h] * scale
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        if bias is not None:
            scores = scores + bias[b % len(bias), h, t, keys]
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, keys, h // group]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rows_of_bias", [0, 1, 2])
@pytest.mark.parametrize(
    ("causal", "band", "scale", "cap"), [(True, None, None, 1.2), (True, 3, 1.0, None), (False, 2, 0.3, None)]
)
def test_einsum_is_a_loop_over_queries_and_heads(kv_heads, rows_of_bias, causal, band, scale, cap):
    T, width = 12, 8
    q, k, v = arrays(T, 4, kv_heads, width)
    segments = jnp.asarray([[1] * 5 + [2] * 7, [1] * 2 + [2] * 9 + [3]], jnp.int32)
    mask = Mask(causal, band, segments, segments)
    bias = np.random.default_rng(3).normal(size=(rows_of_bias, 4, T, T)).astype(np.float32) if rows_of_bias else None
    biased = None if bias is None else jnp.asarray(bias)
    found = attention(q, k, v, mask, implementation="einsum", scale=scale, cap=cap, bias=biased)
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    seen = np.asarray(mask.visible(T, T))
    expected = attended_by_loop(*wide, seen, width**-0.5 if scale is None else scale, bias, cap)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def weighted_sum_and_gradients(implementation, mask, weight, cap=None, block=None):
    def loss(q, k, v):
        out = attention(q, k, v, mask, implementation=implementation, interpret=True, cap=cap, block=block)
        return (out * weight).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("kv_heads", [2, 1], ids=["heads", "grouped"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("band", [None, 40], ids=["dense", "banded"])
@pytest.mark.parametrize("T", [128, 256], ids=["fused_backward", "dq_apart"])
def test_splash_is_einsum_in_values_and_gradients_with_ragged_segments(T, kv_heads, causal, band):
    q, k, v = arrays(T, 2, kv_heads, 16)
    segments = ragged_segments(T)
    mask = Mask(causal, band, segments, segments)
    real = (np.asarray(segments) != 0)[:, :, None, None]  # what padding attends to is nobody's concern
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape) * real, jnp.float32)
    (_, expected), expected_grads = weighted_sum_and_gradients("einsum", mask, weight)(q, k, v)
    (_, found), grads = weighted_sum_and_gradients("splash", mask, weight, block=128)(q, k, v)
    np.testing.assert_allclose(found * real, expected * real, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("implementation", ["splash", "blocked"])
@pytest.mark.parametrize("band", [None, 40], ids=["dense", "banded"])
def test_a_cap_of_scores_is_einsum_s_in_values_and_gradients(implementation, band):
    q, k, v = arrays(128, 2, 1, 16)
    mask, cap = Mask(True, band), 0.8
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape), jnp.float32)
    (plain, _), _ = weighted_sum_and_gradients("einsum", mask, weight)(q, k, v)
    (total, expected), expected_grads = weighted_sum_and_gradients("einsum", mask, weight, cap)(q, k, v)
    assert abs(float(total - plain)) > 0.1
    (_, found), grads = weighted_sum_and_gradients(implementation, mask, weight, cap)(q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("implementation", ["einsum", "splash"])
def test_no_gradient_crosses_from_one_document_to_another(implementation):
    T = 128
    q, k, v = arrays(T, 2, 2, 16)
    segments = ragged_segments(T)
    second = (np.asarray(segments) == 2)[:, :, None, None]
    weight = jnp.asarray(np.random.default_rng(7).normal(size=q.shape) * second, jnp.float32)
    _, grads = weighted_sum_and_gradients(implementation, Mask(False, None, segments, segments), weight)(q, k, v)
    for grad in grads:
        assert np.abs(np.where(second, grad, 0)).max() > 1e-3
        assert (np.where(second, 0, grad) == 0).all()


def test_scores_and_softmax_are_float32_in_bfloat16():
    """4,096 equal scores: every weight is 2^-12, and bfloat16 sums of them would stop growing at 2^-4."""
    S = 4096
    q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, S, 1, 8), jnp.bfloat16)
    v = jnp.asarray(np.random.default_rng(0).normal(size=(1, S, 1, 8)) + 5, jnp.bfloat16)
    out = attention(q, k, v, Mask(False, None), implementation="einsum")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(out, np.float32)[0, 0, 0], np.asarray(v, np.float32)[0, :, 0].mean(0), rtol=5e-3
    )


def model(implementation="auto", dropout=0.0, head_dim=64, positions="learned", **attention):
    heads = AttentionSettings(heads=4, head_dim=head_dim, implementation=implementation, dropout=dropout, **attention)
    return ModelSettings(attention=heads, positions=PositionSettings(kind=positions))


TWO_SIDED_BAND = {"causal": False, "pattern": ("dense", "banded", "dense", "dense"), "band": 9}
CAPPED = {"scores": ScoreSettings(cap=50.0)}
CHOICES = [
    # platform, dtype, segmented, length, settings, the choice
    ("cpu", FLOAT32, True, 256, {}, "blocked"),
    ("cpu", FLOAT32, True, 256, {"dropout": 0.1}, "einsum"),
    ("cpu", FLOAT32, True, 256, {"positions": "relative"}, "blocked"),
    ("cpu", FLOAT32, True, 256, {"positions": "relative", "dropout": 0.1}, "einsum"),
    ("tpu", BFLOAT16, True, 256, {}, "splash"),
    ("tpu", BFLOAT16, True, 200, {}, "einsum"),
    ("tpu", BFLOAT16, True, 256, {"dropout": 0.1}, "einsum"),
    ("tpu", BFLOAT16, True, 200, {"positions": "relative"}, "blocked"),
    ("gpu", BFLOAT16, False, 256, {"positions": "relative"}, "blocked"),
    ("gpu", BFLOAT16, False, 256, {}, "cudnn"),
    ("gpu", BFLOAT16, True, 256, {}, "einsum"),
    ("gpu", FLOAT32, False, 256, {}, "einsum"),
    ("gpu", BFLOAT16, False, 256, {"head_dim": 100}, "einsum"),
    ("gpu", BFLOAT16, False, 256, {"dropout": 0.1}, "einsum"),
    ("cpu", FLOAT32, True, 256, {"causal": False}, "blocked"),
    ("tpu", BFLOAT16, True, 256, {"causal": False}, "splash"),
    ("gpu", BFLOAT16, False, 256, {"causal": False}, "cudnn"),
    ("gpu", BFLOAT16, False, 256, TWO_SIDED_BAND, "einsum"),
    ("gpu", BFLOAT16, False, 256, CAPPED, "einsum"),
    ("tpu", BFLOAT16, True, 256, CAPPED, "splash"),
    ("cpu", FLOAT32, True, 256, CAPPED, "blocked"),
]


@pytest.mark.parametrize(("platform", "dtype", "segmented", "length", "settings", "expected"), CHOICES)
def test_auto_takes_the_fused_kernel_of_the_platform_only_where_it_serves(
    platform, dtype, segmented, length, settings, expected
):
    found = choose(model(**settings), dtype, platform, segmented=segmented, sequence_length=length)
    assert found == expected


REFUSALS = [
    ("cudnn", "gpu", BFLOAT16, False, 256, CAPPED, "cuDNN has no cap of scores"),
    ("splash", "gpu", BFLOAT16, True, 256, {}, "splash runs on TPU, not on gpu"),
    ("splash", "tpu", BFLOAT16, True, 200, {}, "200 is not a multiple of 128"),
    ("splash", "tpu", BFLOAT16, True, 256, {"dropout": 0.1}, "dropout"),
    ("splash", "tpu", BFLOAT16, True, 256, {"positions": "relative"}, "relative"),
    ("cudnn", "cpu", BFLOAT16, False, 256, {}, "cuDNN runs on GPU, not on cpu"),
    ("cudnn", "gpu", BFLOAT16, True, 256, {}, "cannot keep documents apart"),
    ("cudnn", "gpu", FLOAT32, False, 256, {}, "bfloat16, not in compute.dtype 'float32'"),
    ("cudnn", "gpu", BFLOAT16, False, 256, {"head_dim": 136}, "head dimension 136"),
    ("cudnn", "gpu", BFLOAT16, False, 256, {"positions": "relative"}, "relative"),
    ("cudnn", "gpu", BFLOAT16, False, 256, TWO_SIDED_BAND, "causal = False"),
]


@pytest.mark.parametrize(("name", "platform", "dtype", "segmented", "length", "settings", "reason"), REFUSALS)
def test_a_named_implementation_that_cannot_serve_is_an_error_and_never_another_one(
    name, platform, dtype, segmented, length, settings, reason
):
    with pytest.raises(UserError, match=f"model.attention.implementation = '{name}'.*{reason}.*use 'auto'"):
        choose(model(name, **settings), dtype, platform, segmented=segmented, sequence_length=length)


@pytest.mark.parametrize("given", ["bias", "dropout"])
def test_a_fused_kernel_refuses_what_it_would_have_to_leave_out(given):
    q, k, v = arrays(128, 2, 2, 16)
    extra = {
        "bias": {"bias": jnp.zeros((1, 2, 128, 128))},
        "dropout": {"dropout_rate": 0.1, "key": jax.random.key(0)},
    }[given]
    with pytest.raises(UserError, match="bias and dropout need 'einsum'"):
        attention(q, k, v, Mask(True, None), implementation="splash", interpret=True, **extra)


def lowered(platform, implementation, mask, dtype=jnp.bfloat16, head_dim=64):
    """The StableHLO of forward and backward for a platform that is not attached."""

    def loss(q, k, v):
        return attention(q, k, v, mask, implementation=implementation).astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct((2, 256, heads, head_dim), dtype) for heads in (4, 2, 2)]
    exported = export.export(
        jax.jit(jax.grad(loss, (0, 1, 2))),
        platforms=[platform],
        disabled_checks=[
            export.DisabledSafetyCheck.custom_call(name)
            for name in ("tpu_custom_call", "LayoutConstraint", "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
        ],
    )
    return exported(*shapes).mlir_module()


@pytest.mark.parametrize("band", [None, 70], ids=["dense", "banded"])
def test_splash_lowers_for_tpu_forward_and_backward(band):
    segments = ragged_segments(256)
    text = lowered("tpu", "splash", Mask(True, band, segments, segments))
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 2  # forward, and all gradients
    assert "256x256" not in text  # no scores outside of the kernel


@pytest.mark.parametrize(("head_dim", "asked"), [(64, 0), (128, 1)])
def test_the_gradient_of_heads_that_fill_registers_lies_by_rows(head_dim, asked):
    """The result is not among what is lowered: its sum's gradient does not need it."""
    text = lowered("tpu", "splash", Mask(True, None), head_dim=head_dim)
    assert text.count("stablehlo.custom_call @LayoutConstraint") == asked


@pytest.mark.parametrize("band", [None, 70], ids=["dense", "banded"])
def test_cudnn_lowers_for_cuda_with_its_own_causal_mask_and_window(band, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # it asks for a library that is not here
    text = lowered("cuda", "cudnn", Mask(True, band))
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert "mask_type\\22: \\22CAUSAL\\22" in text
    window = 0 if band is None else band
    assert f"sliding_window_length\\22: {window}" in text
    assert "256x256" not in text  # neither a mask nor scores


@pytest.mark.parametrize("mask", ["segments", "two-sided band"])
def test_cudnn_refuses_masks_that_it_cannot_express(mask):
    q, k, v = arrays(128, 2, 2, 16)
    segments = ragged_segments(128)
    given = Mask(True, None, segments, segments) if mask == "segments" else Mask(False, 7)
    with pytest.raises(UserError, match="no segments and no two-sided band"):
        attention(q, k, v, given, implementation="cudnn")
