"""The whole decoder against a NumPy one written from the papers, and what scan, remat and init must not change."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from lmjax.model.language_model import LanguageModel
from lmjax.model.remat import REMAT_POLICIES
from lmjax.model.stack import stack_layers, unstack_layers
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    FeedForwardSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
)

SMALL = {"layers": 2, "width": 16, "context": 12, "vocab_size": 23}
HEADS = AttentionSettings(heads=4)
ARCHITECTURES = {
    "gpt1": ModelSettings(
        **SMALL, attention=HEADS, norm=NormSettings(position="post", final=False), scaled_residual_init=False
    ),
    "gpt2": ModelSettings(**SMALL, attention=HEADS),
    "gpt3": ModelSettings(
        **{**SMALL, "layers": 4}, attention=AttentionSettings(heads=4, pattern=("dense", "banded"), band=3)
    ),
    "bert-like": ModelSettings(
        **SMALL,
        attention=HEADS,
        norm=NormSettings(position="post", eps=1e-12),
        feed_forward=FeedForwardSettings(activation="gelu_erf"),
    ),
    "llama": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=4, kv_heads=2, head_dim=6, bias=False),
        feed_forward=FeedForwardSettings(width=24, activation="silu", gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=1e-6),
        positions=PositionSettings(kind="rotary"),
        tied_head=False,
    ),
    "t5-like": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=4, head_dim=6, bias=False, scaled=False),
        feed_forward=FeedForwardSettings(activation="relu", bias=False),
        norm=NormSettings(kind="rmsnorm", eps=1e-6),
        positions=PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=10),
    ),
    "no positions": ModelSettings(**SMALL, attention=HEADS, positions=PositionSettings(kind="none")),
}
ENCODER = AttentionSettings(heads=4, causal=False)
ENCODERS = {
    "bert-like": dataclasses.replace(ARCHITECTURES["bert-like"], attention=ENCODER),
    "banded": ModelSettings(
        **SMALL, attention=dataclasses.replace(ENCODER, pattern=("dense", "banded"), band=3), tied_head=False
    ),
    "rotary, grouped": dataclasses.replace(
        ARCHITECTURES["llama"], attention=dataclasses.replace(ARCHITECTURES["llama"].attention, causal=False)
    ),
    "relative": dataclasses.replace(
        ARCHITECTURES["t5-like"], attention=dataclasses.replace(ARCHITECTURES["t5-like"].attention, causal=False)
    ),
}
ACTIVATIONS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


class NumpyDecoder:
    """A decoder in float64, one row at a time, from unscanned parameters."""

    def __init__(self, settings, params):
        self.settings = settings
        self.params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def logits(self, tokens, positions, segments):
        return np.stack([self.row(*row) for row in zip(tokens, positions, segments, strict=True)])

    def row(self, tokens, positions, segments):
        settings, params = self.settings, self.params
        x = params["tokens"][tokens]
        if settings.positions.kind == "learned":
            x = x + params["positions"][positions]
        pattern = settings.attention.pattern
        for layer in range(settings.layers):
            kind = pattern[layer % len(pattern)]
            block = params[f"period_{layer // len(pattern)}"][f"block_{layer % len(pattern)}"]
            x = self.block(block, x, self.seen(segments, kind), positions)
        if settings.norm.final:
            x = self.norm(params["final_norm"], x)
        return x @ params["tokens" if settings.tied_head else "head"].T

    def seen(self, segments, kind):
        t, s = np.indices((len(segments), len(segments)))
        band = self.settings.attention.band if kind == "banded" else len(segments)
        near = (s <= t) & (t - s < band) if self.settings.attention.causal else np.abs(t - s) < band
        return near & (segments[t] == segments[s]) & (segments[s] != 0)

    def block(self, params, x, seen, positions):
        pre = self.settings.norm.position == "pre"
        for norm, branch in (
            ("attention_norm", lambda x: self.attention(params["attention"], x, seen, positions)),
            ("feed_forward_norm", lambda x: self.feed_forward(params["feed_forward"], x)),
        ):
            x = x + branch(self.norm(params[norm], x)) if pre else self.norm(params[norm], x + branch(x))
        return x

    def norm(self, params, x):
        params = params["norm"]
        if self.settings.norm.kind == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.settings.norm.eps) * params["scale"] + params.get(
            "bias", 0.0
        )

    def attention(self, params, x, seen, positions):
        heads = self.settings.attention
        q, kv = self.dense(params["query"], x), self.dense(params["key_value"], x)
        k, v = kv[:, 0], kv[:, 1]
        if self.settings.positions.kind == "rotary":
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        k, v = (np.repeat(a, heads.heads // a.shape[1], axis=1) for a in (k, v))
        scores = np.einsum("thk,shk->hts", q, k) / (math.sqrt(q.shape[-1]) if heads.scaled else 1.0)
        if self.settings.positions.kind == "relative":
            scores = scores + self.relative(len(x))
        scores = np.where(seen, scores, -np.inf)
        scores[:, ~seen.any(-1)] = 0.0  # padding: any finite thing
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), v)
        return self.dense(params["out"], y, contracted=2)

    def feed_forward(self, params, x):
        hidden = ACTIVATIONS[self.settings.feed_forward.activation](self.dense(params["up"], x))
        if self.settings.feed_forward.gated:
            hidden = hidden * self.dense(params["gate"], x)
        return self.dense(params["down"], hidden)

    def dense(self, params, x, contracted=1):
        return np.tensordot(x, params["kernel"], contracted) + params.get("bias", 0.0)

    def rotate(self, x, positions):
        half = x.shape[-1] // 2
        angles = positions[:, None, None] * self.settings.positions.rotary_base ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    def relative(self, length):
        """Eight buckets up to distance 10. Of a decoder 0, 1, 2, 3, then log-spaced from 4 on; of an encoder as many
        for each side: 0, 1, then log-spaced from 2 on, and the same for later keys, which no bucket shares."""
        exact = 4 if self.settings.attention.causal else 2
        edges = [exact * (10 / exact) ** (i / exact) for i in range(1, exact)]
        bucket = [d if d < exact else exact + sum(d >= edge for edge in edges) for d in range(length)]
        table = self.params["relative_bias"]["table"]

        def row(t, s):
            if s <= t or self.settings.attention.causal:
                return table[bucket[max(t - s, 0)]]
            return table[4 + bucket[s - t]]

        return np.array([[row(t, s) for s in range(length)] for t in range(length)]).transpose(2, 0, 1)


def parameters(model, seed=0):
    """Parameters far from their initial values, so that biases, scales and every matrix show in the logits."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    segments = np.array([[1] * 4 + [2] * 8, [1] * 7 + [2] * 3 + [0] * 2], np.int32)
    positions = np.array([[*range(4), *range(8)], [*range(7), *range(3), 0, 0]], np.int32)
    tokens = np.random.default_rng(0).integers(0, SMALL["vocab_size"], segments.shape).astype(np.int32)
    return {"tokens": tokens, "positions": positions, "segments": segments}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_numpy_decoder(name, batch):
    settings = ARCHITECTURES[name]
    model = LanguageModel(settings, ComputeSettings(scan_layers=True))
    params = parameters(model)
    expected = NumpyDecoder(settings, unstack_layers(params)).logits(**batch)
    real = (batch["segments"] != 0)[:, :, None]
    found = np.asarray(jax.jit(model.logits)(params, batch))
    assert found.dtype == np.float32 and np.abs(expected).max() > 1
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, expected, 0), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["auto", "einsum"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_logits_are_those_of_the_numpy_one(name, implementation, batch):
    heads = dataclasses.replace(ENCODERS[name].attention, implementation=implementation)
    settings = dataclasses.replace(ENCODERS[name], attention=heads)
    model = LanguageModel(settings)
    params = parameters(model)
    expected = NumpyDecoder(settings, unstack_layers(params)).logits(**batch)
    real = (batch["segments"] != 0)[:, :, None]
    found = np.asarray(jax.jit(model.logits)(params, batch))
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, expected, 0), atol=3e-4, rtol=1e-4)
    causal = dataclasses.replace(settings, attention=dataclasses.replace(heads, causal=True))
    decoded = NumpyDecoder(causal, unstack_layers(params)).logits(**batch)
    assert np.abs(np.where(real, expected - decoded, 0)).max() > 0.1


@pytest.mark.parametrize(("scan", "scaled"), [(True, True), (False, True), (True, False)])
def test_the_residual_projections_start_smaller_by_the_root_of_twice_the_depth(scan, scaled):
    settings = ModelSettings(layers=3, width=64, context=8, vocab_size=256, scaled_residual_init=scaled)
    params = jax.jit(LanguageModel(settings, ComputeSettings(scan_layers=scan)).init)(fast_key(0))
    params = params if scan else stack_layers(params)
    block = params["periods"]["block_0"]
    expected = 0.02 / math.sqrt(2 * 3) if scaled else 0.02
    for kernel, std in (
        (block["attention"]["out"]["kernel"], expected),
        (block["feed_forward"]["down"]["kernel"], expected),
        (block["attention"]["query"]["kernel"], 0.02),
        (block["attention"]["key_value"]["kernel"], 0.02),
        (block["feed_forward"]["up"]["kernel"], 0.02),
    ):
        for layer in range(3):
            assert kernel[layer].std() == pytest.approx(std, rel=5 / math.sqrt(2 * kernel[layer].size))
        assert len(np.unique(np.asarray(kernel[:, 0, ..., 0]))) >= 3  # every layer draws its own
    assert params["tokens"].std() == pytest.approx(0.02, rel=0.06)
    for name in ("out", "query"):
        assert not np.asarray(block["attention"][name]["bias"]).any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_seed_draws_the_same_parameters_whether_layers_are_scanned_or_not(name):
    scanned, apart = (LanguageModel(ARCHITECTURES[name], ComputeSettings(scan_layers=scan)) for scan in (True, False))
    key = fast_key(3)
    found, expected = jax.jit(apart.init)(key), unstack_layers(jax.jit(scanned.init)(key))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


def loss_and_gradients(model, batch):
    weight = np.random.default_rng(5).normal(size=(2, 12, SMALL["vocab_size"])).astype(np.float32)
    weight *= (batch["segments"] != 0)[:, :, None]

    def loss(params, key):
        return (model.logits(params, batch, key) * weight).sum()

    return jax.jit(jax.value_and_grad(loss))


def fast_key(seed):
    """A key with which a step compiles in half the time that it takes with the default one."""
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(scope="module")
def dropping():
    """GPT-2 with both kinds of dropout."""
    return dataclasses.replace(ARCHITECTURES["gpt2"], attention=AttentionSettings(heads=4, dropout=0.2), dropout=0.3)


@pytest.fixture(scope="module")
def plain(dropping, batch):
    model = LanguageModel(dropping)
    params = parameters(model)
    call = loss_and_gradients(model, batch)
    return params, call, call(params, fast_key(11))


def assert_trees_close(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_dropout_is_on_where_remat_is_tested(plain):
    params, call, (loss, _) = plain
    assert abs(float(loss) - float(call(params, fast_key(12))[0])) > 1


@pytest.mark.parametrize(
    ("layers", "policy"),
    [
        *(("scanned", name) for name in REMAT_POLICIES),
        *(("apart", "none"), ("apart", "full"), ("unrolled", "none"), ("unrolled", "projections")),
    ],
)
def test_neither_remat_nor_scan_changes_loss_or_gradients_with_dropout(layers, policy, dropping, plain, batch):
    """The recomputed forward pass must draw the very masks of the first one, and layer 1 its own in either form."""
    params, _, (loss, grads) = plain
    scan = layers != "apart"
    compute = ComputeSettings(remat=policy, scan_layers=scan, unroll_layers=layers == "unrolled")
    model = LanguageModel(dropping, compute)
    call = loss_and_gradients(model, batch)
    found, found_grads = call(params if scan else unstack_layers(params), fast_key(11))
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    assert_trees_close(found_grads if scan else stack_layers(found_grads), grads, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_every_branch_of_every_layer_draws_a_mask_of_its_own(scan):
    """Each branch adds a constant, a power of two: the sum of those that were kept names them."""
    settings = ModelSettings(layers=2, width=64, context=64, norm=NormSettings(final=False), dropout=0.5, vocab_size=4)
    model = LanguageModel(settings, ComputeSettings(scan_layers=scan))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
    layers = unstack_layers(params) if scan else params
    for layer in range(2):
        block = layers[f"period_{layer}"]["block_0"]
        block["attention"]["out"]["bias"] += 4.0**layer / 2  # dropout doubles what it keeps
        block["feed_forward"]["down"]["bias"] += 4.0**layer
    tokens = np.zeros((2, 64), np.int32)
    batch = {"tokens": tokens, "positions": tokens, "segments": tokens + 1}
    kept = model.hidden(stack_layers(layers) if scan else layers, batch, fast_key(0)).hidden
    masks = np.asarray(kept, np.int64).reshape(-1) >> np.arange(4)[:, None] & 1
    assert set(np.unique(kept)) == set(range(16))
    for one in range(4):
        assert abs(masks[one].mean() - 0.5) < 0.03
        for other in range(one):
            assert abs((masks[one] == masks[other]).mean() - 0.5) < 0.03


def test_stacking_is_undone_by_unstacking_beyond_ten_layers():
    settings = dataclasses.replace(ARCHITECTURES["gpt2"], layers=12)  # period_10 sorts before period_2 as text
    params = parameters(LanguageModel(settings))
    unrolled = unstack_layers(params)
    shapes = jax.eval_shape(LanguageModel(settings, ComputeSettings(scan_layers=False)).init, jax.random.key(1))
    assert jax.tree.map(jnp.shape, unrolled) == jax.tree.map(jnp.shape, shapes)
    assert_trees_close(stack_layers(unrolled), params, rtol=0)


def test_logical_axes_name_every_axis_of_every_parameter():
    for settings in ARCHITECTURES.values():
        model = LanguageModel(settings)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        axes = model.logical_axes()
        flat = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        for leaf, names in zip(jax.tree.leaves(shapes), flat, strict=True):
            assert len(names) == leaf.ndim and all(isinstance(name, str) for name in names)
