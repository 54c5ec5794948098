"""What must hold of a model without causality: both sides are seen, documents and padding are not, nothing decodes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.errors import UserError
from lmjax.generate.decode import generate
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.objective.preferences import preference_loss
from lmjax.rl.learner import Learner
from lmjax.rl.rollout import Vocabulary
from lmjax.settings import (
    AttentionSettings,
    KLSettings,
    ModelSettings,
    PositionSettings,
    PPOSettings,
    Pretrain,
    RewardSettings,
)
from lmjax.settings.recipe_files import from_json, to_json
from lmjax.tokenizers.byte import ByteTokenizer

T, V = 128, 300
SMALL = {"layers": 2, "width": 16, "context": T, "vocab_size": V}
FAMILIES = {
    "learned": ModelSettings(**SMALL, attention=AttentionSettings(heads=2, causal=False)),
    "banded, rotary": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=2, kv_heads=1, causal=False, pattern=("banded",), band=40),
        positions=PositionSettings(kind="rotary"),
    ),
    "relative": ModelSettings(
        **SMALL,
        attention=AttentionSettings(heads=2, causal=False),
        positions=PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=10),
    ),
}
SEGMENTS = np.array([[1] * 20 + [2] * 81 + [3] * 27, [1] * 70 + [2] * 9 + [0] * 49], np.int32)


def made(family, implementation="auto", **fields):
    attention = dataclasses.replace(FAMILIES[family].attention, implementation=implementation)
    return LanguageModel(dataclasses.replace(FAMILIES[family], attention=attention), **fields)


def parameters(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def rows(segments=SEGMENTS, seed=1):
    B, length = segments.shape
    tokens = np.random.default_rng(seed).integers(0, V, (B, length)).astype(np.int32)
    return {
        "tokens": tokens,
        "positions": np.tile(np.arange(length, dtype=np.int32), (B, 1)),
        "segments": segments,
    }


def served():
    """Every family with every implementation that can serve it on a CPU."""
    fused = [(family, name) for family in ("learned", "banded, rotary") for name in ("einsum", "blocked", "splash")]
    return [*fused, ("relative", "einsum"), ("relative", "blocked")]


@pytest.mark.parametrize(("family", "implementation"), served())
def test_a_token_sees_its_whole_document_and_nothing_else(family, implementation):
    model = made(family, implementation)
    params, batch = parameters(model), rows()
    batch["tokens"] = np.arange(2 * T, dtype=np.int32).reshape(2, T)  # each place reads a vector of its own

    def total(vectors, weight):
        hidden, _ = model.hidden(params | {"tokens": vectors}, batch)
        return (hidden * weight[:, :, None] * jnp.arange(1, 17)[None, None, :]).sum()

    weight = np.zeros((2, T), np.float32)
    weight[0, 60] = weight[1, 3] = 1.0  # in the middle of a document, and at the beginning of another
    gradient = jax.jit(jax.grad(total))(params["tokens"], weight)
    reached = np.abs(gradient).max(-1)[: 2 * T].reshape(2, T) > 0
    document = np.array([SEGMENTS[0] == 2, SEGMENTS[1] == 1])
    within = np.abs(np.arange(T) - np.array([[60], [3]])) < (2 * 39 + 1 if family == "banded, rotary" else T)
    np.testing.assert_array_equal(reached, document & within)


@pytest.mark.parametrize("family", ["learned", "relative"])
def test_padding_is_hidden_from_rows_of_one_document_too(family):
    """`segmented=False` says that a row is one document: a decoder then needs no mask for the padding behind it."""
    segments = (np.arange(T) < np.array([[T], [50]])).astype(np.int32)
    model = made(family, segmented=False)
    params, logits = parameters(model), jax.jit(model.logits)
    one, other = rows(segments), rows(segments, seed=2)
    other["tokens"] = np.where(segments != 0, one["tokens"], other["tokens"])
    assert (one["tokens"] != other["tokens"]).any()
    real = segments != 0
    np.testing.assert_array_equal(np.asarray(logits(params, one))[real], np.asarray(logits(params, other))[real])
    packed = jax.jit(made(family).logits)(params, one)
    np.testing.assert_allclose(np.asarray(logits(params, one))[real], np.asarray(packed)[real], atol=1e-5)


@pytest.mark.parametrize(("family", "implementation"), [pair for pair in served() if pair[1] != "einsum"])
def test_every_implementation_is_einsum_in_values_and_gradients_with_ragged_segments(family, implementation):
    weight = np.random.default_rng(3).normal(size=(2, T, V)).astype(np.float32) * (SEGMENTS != 0)[:, :, None]
    params = parameters(made(family))

    def value_and_gradients(name):
        return jax.jit(jax.value_and_grad(lambda p: (made(family, name).logits(p, rows()) * weight).sum()))(params)

    (value, gradients), (wanted, expected) = value_and_gradients(implementation), value_and_gradients("einsum")
    assert float(value) == pytest.approx(float(wanted), rel=1e-4, abs=1e-2)
    for found, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, leaf, atol=2e-5 * float(jnp.abs(leaf).max()) + 1e-6, rtol=1e-3)


def test_a_relative_bias_has_buckets_for_later_keys_only_without_causality():
    batch = rows()
    weight = np.random.default_rng(3).normal(size=(2, T, V)).astype(np.float32)

    def of_buckets(model):
        params = parameters(model)
        gradient = jax.jit(jax.grad(lambda p: (model.logits(p, batch) * weight).sum()))(params)
        return np.abs(gradient["relative_bias"]["table"]).max(-1)

    encoder = made("relative")
    attention = dataclasses.replace(encoder.settings.attention, causal=True)
    decoder = LanguageModel(dataclasses.replace(encoder.settings, attention=attention))
    # The encoder's bucket 4 is of a later key at distance 0, which is none.
    assert (of_buckets(encoder) > 0).tolist() == [True] * 4 + [False] + [True] * 3
    assert (of_buckets(decoder) > 0).all()
    table = jnp.asarray(np.arange(16, dtype=np.float32).reshape(8, 2))
    biased = [
        np.asarray(model.hidden(parameters(model) | {"relative_bias": {"table": table}}, batch).hidden)
        for model in (encoder, decoder)
    ]
    assert np.abs(biased[0] - biased[1])[0, 0].max() > 1e-3


def test_a_saved_recipe_without_the_field_is_a_decoders():
    recipe = Pretrain()
    saved = json.loads(to_json(recipe))
    text = json.dumps(saved)
    assert '"causal": true' in text
    assert from_json(text.replace('"causal": true, ', "")) == recipe
    assert '"causal"' not in text.replace('"causal": true, ', "")


REFUSED = r"model\.attention\.causal = False: expected true, as {}.*; set it"


def test_nothing_that_predicts_the_next_token_takes_an_encoder():
    model = made("learned")
    params = parameters(model)
    with pytest.raises(UserError, match=REFUSED.format("generating text")):
        generate(model, params, ByteTokenizer(), ["a"])
    arrays = np.zeros((1, 4), np.int32)
    with pytest.raises(UserError, match=REFUSED.format("decoding with a cache")):
        model.extend(params, model.empty_cache(1, 8), arrays, arrays, arrays + 1, 0)
    with pytest.raises(UserError, match=REFUSED.format("predicting the next token")):
        language_loss(model)
    with pytest.raises(UserError, match=REFUSED.format("DPO")):
        preference_loss(model, params, beta=0.1)


@pytest.mark.parametrize(("which", "name"), [("policy", "a policy"), ("value", "a value model")])
def test_ppo_takes_no_encoder(which, name):
    encoder = made("learned")
    attention = dataclasses.replace(encoder.settings.attention, causal=True)
    decoder = LanguageModel(dataclasses.replace(encoder.settings, attention=attention))
    models = {"policy": decoder, "value": ScalarModel(decoder)}
    models[which] = encoder if which == "policy" else ScalarModel(encoder)
    rest = (Vocabulary(V, 0), PPOSettings(), KLSettings(), RewardSettings(), {"policy": optax.sgd(0.1)})
    with pytest.raises(UserError, match=REFUSED.format(name)):
        Learner(models["policy"], models["value"], None, *rest)
