"""What must hold of every decoder: causality, isolated documents, cached decoding, masks that no mesh moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import on_mesh, parameter_shardings, place_batch
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    EmbeddingSettings,
    FeedForwardSettings,
    HeadSettings,
    MeshSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    RotaryScaling,
    ScoreSettings,
)

T = 12
SMALL = {"layers": 2, "width": 16, "context": 128, "vocab_size": 24}
FAMILIES = {
    "post-norm": ModelSettings(
        **SMALL, attention=AttentionSettings(heads=2), norm=NormSettings(position="post", final=False)
    ),
    "banded": ModelSettings(**SMALL, attention=AttentionSettings(heads=2, pattern=("banded", "dense"), band=4)),
    "rotary, grouped": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=4, kv_heads=2, bias=False),
        feed_forward=FeedForwardSettings(activation="silu", gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=1e-6),
        positions=PositionSettings(kind="rotary"),
        tied_head=False,
    ),
    "local and global, norms around branches, capped": ModelSettings(
        **SMALL,
        attention=AttentionSettings(
            heads=4,
            kv_heads=2,
            pattern=("banded", "dense"),
            band=4,
            qk_norm="head",
            bias=False,
            scores=ScoreSettings(cap=1.5, scale_dim=6),
        ),
        norm=NormSettings(kind="rmsnorm", position="sandwich", unit_offset=True),
        positions=PositionSettings(
            kind="rotary", banded_rotary_base=50.0, rotary_scaling=RotaryScaling(kind="linear", factor=4.0)
        ),
        embeddings=EmbeddingSettings(scaled=True),
        head=HeadSettings(logit_cap=2.0),
    ),
    "no positions in turn, norms behind branches": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=2, pattern=("nope", "dense"), qk_norm="projection", out_bias=False),
        norm=NormSettings(position="branch_output"),
        positions=PositionSettings(kind="rotary", rotary_scaling=RotaryScaling(kind="yarn", factor=4.0, amplitude=1.2)),
        tied_head=False,
    ),
    "relative": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=2, scaled=False),
        positions=PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=10),
    ),
}


def parameters(model):
    """Far from their initial values, so that whatever leaks is large."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def rows(segments, seed=1):
    """Random tokens whose positions restart in every segment."""
    segments = np.asarray(segments, np.int32)
    starts = np.diff(segments, axis=1, prepend=-1) != 0
    index = np.arange(segments.shape[1])
    positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    tokens = np.random.default_rng(seed).integers(0, 24, segments.shape)
    return {
        "tokens": tokens.astype(np.int32),
        "positions": positions.astype(np.int32),
        "segments": segments,
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A model, its parameters, its jitted logits and the gradient of one token's logits by all token vectors."""
    model = LanguageModel(FAMILIES[request.param])
    params = parameters(model)

    def influence(weight, batch):
        """How much the weighted logits change with the vector of each token: [B, T]; no two tokens share a vector."""
        B, length = batch["tokens"].shape
        own = jnp.arange(B * length, dtype=jnp.int32).reshape(B, length)
        vectors = jnp.take(params["tokens"], batch["tokens"].reshape(-1), axis=0)

        def total(vectors):
            # A table with a row per place (B x T are as many as its rows): no two tokens share a vector.
            hidden = model.hidden(params | {"tokens": vectors}, {**batch, "tokens": own}).hidden
            return (model.project(params, hidden) * weight[:, :, None]).sum()

        return jnp.abs(jax.grad(total)(vectors)).max(-1).reshape(B, length)

    return model, params, jax.jit(model.logits), jax.jit(influence)


def test_no_gradient_comes_from_a_later_token(family):
    _, _, _, influence = family
    batch = rows([[1] * T, [1] * T])
    reach = []
    for t in (0, 5, T - 1):
        weight = np.zeros((2, T), np.float32)
        weight[0, t] = 1
        found = np.asarray(influence(weight, batch))
        assert (found[0, t + 1 :] == 0).all() and (found[1] == 0).all()
        reach.append((found[0, : t + 1] > 0).all())
    assert all(reach)  # two layers, one of them dense: everything before is seen


def test_changing_a_document_moves_no_logit_of_another(family):
    _, params, logits, influence = family
    segments = [[1] * 3 + [2] * 7 + [3] * 2, [1] * 8 + [2] * 2 + [0] * 2]
    batch = rows(segments)
    second = np.array(segments) == 2
    found = np.asarray(influence(second.astype(np.float32), batch))
    assert (found[~second] == 0).all() and (found[second] > 0).all()

    other = dict(batch, tokens=np.where(second, batch["tokens"], rows(segments, seed=2)["tokens"]))
    one, two = np.asarray(logits(params, batch)), np.asarray(logits(params, other))
    assert (one[second] == two[second]).all()
    assert np.abs(one - two)[:, 0].max() > 0.1


def test_padding_never_changes_a_document(family):
    """A document alone in its row, and packed behind another with padding behind it, has the same logits."""
    _, params, logits, _ = family
    packed = rows([[1] * 4 + [2] * 5 + [0] * 3, [1] * 5 + [0] * 7])
    alone = rows([[1] * 5 + [0] * 7, [1] * 5 + [0] * 7], seed=9)
    alone["tokens"][0, :5] = packed["tokens"][0, 4:9]
    expected, found = np.asarray(logits(params, alone))[0, :5], np.asarray(logits(params, packed))[0, 4:9]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_prefill_and_decoding_with_a_cache_are_the_full_forward_pass(family):
    """Ragged prompts padded on the left, then single tokens, one row ending early; masks go by the last slot."""
    model, params, logits, _ = family
    lengths, total, width = [6, 2], [T, 9], 7  # a prompt of 6 and one of 2, in 7 slots
    batch = rows([[1] * T, [1] * 9 + [0] * 3])
    expected = np.asarray(logits(params, batch))
    extend = jax.jit(model.extend)
    project = jax.jit(model.project)

    tokens, positions, segments = (np.zeros((2, width), np.int32) for _ in range(3))
    for row, length in enumerate(lengths):
        tokens[row, width - length :] = batch["tokens"][row, :length]
        positions[row, width - length :] = np.arange(length)
        segments[row, width - length :] = 1
    hidden, cache = extend(params, model.empty_cache(2, 20), tokens, positions, segments, 0)
    for row, length in enumerate(lengths):
        found = project(params, hidden)[row, width - length :]
        np.testing.assert_allclose(found, expected[row, :length], atol=2e-4)
    for step in range(T - min(lengths)):
        at = [length + step for length in lengths]
        live = [place < end for place, end in zip(at, total, strict=True)]
        one = [
            [batch["tokens"][row, place] if alive else 0]
            for row, (place, alive) in enumerate(zip(at, live, strict=True))
        ]
        arrays = (np.array(x, np.int32) for x in (one, [[p] for p in at], [[int(alive)] for alive in live]))
        hidden, cache = extend(params, cache, *arrays, width + step)
        for row, (place, alive) in enumerate(zip(at, live, strict=True)):
            if alive:
                found = project(params, hidden)[row, 0]
                np.testing.assert_allclose(found, expected[row, place], atol=2e-4)


@pytest.mark.parametrize("band", [T, 3 * T])
def test_banded_attention_is_dense_when_the_band_covers_the_context(band):
    def made(**attention):
        heads = AttentionSettings(heads=2, **attention)
        return LanguageModel(ModelSettings(**SMALL, attention=heads), ComputeSettings(scan_layers=False))

    dense = made()
    params = parameters(dense)
    batch = rows([[1] * 3 + [2] * 9, [1] * T])
    found = made(pattern=("banded",), band=band).logits(params, batch)
    np.testing.assert_allclose(found, dense.logits(params, batch), atol=1e-5)
    narrower = made(pattern=("banded",), band=T - 1).logits(params, batch)
    assert np.abs(narrower - found)[1, -1].max() > 1e-3  # one key less is seen to matter


def test_stacked_banded_layers_reach_back_by_their_bands_alone():
    heads = AttentionSettings(heads=2, pattern=("banded",), band=3)
    model = LanguageModel(ModelSettings(**SMALL, attention=heads))
    params, batch = parameters(model), rows([[1] * T])
    batch["tokens"] = np.arange(T, dtype=np.int32)[None]  # each place reads a vector of its own

    def last(vectors):
        return model.hidden(params | {"tokens": vectors}, batch).hidden[0, -1].sum()

    reach = np.abs(jax.grad(last)(params["tokens"])).max(-1)[:T] > 0
    assert reach.tolist() == [False] * 7 + [True] * 5  # two layers: 1 + 2 x (3 - 1) tokens


DROPPING = ModelSettings(
    **{**SMALL, "vocab_size": 32},
    attention=AttentionSettings(heads=2, pattern=("dense", "banded"), band=5, dropout=0.2),
    dropout=0.2,
)


@pytest.fixture(scope="module")
def on_one_device():
    """Loss and gradients with dropout, and what they are made from."""
    model = LanguageModel(DROPPING, ComputeSettings(remat="full"))
    params = parameters(model)
    batch = rows([[1] * 3 + [2] * 13] * 4 + [[1] * 11 + [0] * 5] * 4)
    batch["tokens"] = np.random.default_rng(5).integers(0, 32, (8, 16)).astype(np.int32)
    batch["targets"] = np.roll(batch["tokens"], -1, axis=1)
    batch["weights"] = (batch["segments"] != 0).astype(np.float32)

    def loss(params, batch, key):
        return language_loss(model)(params, batch, key)[0].mean()

    gradients = jax.value_and_grad(loss)
    return model, params, batch, gradients, jax.jit(gradients)(params, batch, jax.random.key(3))


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "sequence": 2, "tensor": 2}], ids=str)
def test_dropout_draws_the_same_masks_on_every_mesh(on_one_device, sizes):
    model, params, batch, gradients, (expected_loss, expected) = on_one_device
    mesh = make_mesh(MeshSettings(**sizes))
    placed = jax.device_put(params, parameter_shardings(model.logical_axes(), mesh))
    on_devices = place_batch(lambda part: {name: array[part] for name, array in batch.items()}, 8, mesh)
    loss, found = jax.jit(on_mesh(gradients, mesh))(placed, on_devices, jax.random.key(3))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_another_key_gives_another_loss(on_one_device):
    _, params, batch, gradients, (loss, _) = on_one_device
    assert abs(float(jax.jit(gradients)(params, batch, jax.random.key(4))[0]) - float(loss)) > 1e-2
