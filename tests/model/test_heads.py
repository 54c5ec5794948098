"""Scalar heads: where a conversation is read, what its padding can change (nothing), and how the head begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.heads import ScalarModel, apply_scalar, init_scalar, last_real_token
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ModelSettings, PositionSettings

LENGTHS = [7, 1, 4, 12]


def scalar_model(**changes):
    settings = {"layers": 2, "width": 32, "context": 16, "vocab_size": 40, "attention": AttentionSettings(heads=4)}
    return ScalarModel(LanguageModel(ModelSettings(**(settings | changes))))


def conversations(side, width=12, padding_token=0):
    rng = np.random.default_rng(0)
    batch = {name: np.zeros((len(LENGTHS), width), np.int32) for name in ("tokens", "positions", "segments")}
    batch["tokens"][:] = padding_token
    for row, length in enumerate(LENGTHS):
        at = slice(0, length) if side == "right" else slice(width - length, width)
        batch["tokens"][row, at] = rng.integers(1, 40, length)
        batch["positions"][row, at] = np.arange(length)
        batch["segments"][row, at] = 1
    return {name: jnp.asarray(array) for name, array in batch.items()}


@pytest.fixture(scope="module")
def model():
    return scalar_model()


@pytest.fixture(scope="module")
def scores(model):
    return jax.jit(model.scores)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_score_is_the_value_at_the_last_real_token(model, params, scores, side):
    batch = conversations(side)
    values = jax.jit(model.values)(params, batch)
    last = [length - 1 if side == "right" else 11 for length in LENGTHS]
    assert last_real_token(batch["segments"]).tolist() == last
    np.testing.assert_allclose(scores(params, batch), values[np.arange(4), last], rtol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "rotary"])
def test_padding_on_either_side_of_any_width_gives_the_same_scores(kind):
    model = scalar_model(positions=PositionSettings(kind=kind))
    params = model.init(jax.random.key(1))
    scores = jax.jit(model.scores)
    alone = []
    for row, length in enumerate(LENGTHS):
        batch = {name: array[row : row + 1, :length] for name, array in conversations("right").items()}
        alone.append(float(scores(params, batch)[0]))
    for side in ("left", "right"):
        for width in (12, 16):
            np.testing.assert_allclose(scores(params, conversations(side, width)), alone, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_changes_no_bit(model, params, scores, side):
    clean, dirty = conversations(side), conversations(side, padding_token=39)
    np.testing.assert_array_equal(scores(params, dirty), scores(params, clean))

    def total(params, batch):
        return model.scores(params, batch).sum()

    slope = jax.jit(jax.grad(total))
    gradients = [slope(params, batch) for batch in (clean, dirty)]
    jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_a_token_that_equals_the_padding_is_read_like_any_other(params, scores):
    batch = conversations("right")
    ends_with_zero = batch | {"tokens": batch["tokens"].at[0, 6].set(0)}
    assert last_real_token(ends_with_zero["segments"])[0] == 6
    assert float(scores(params, ends_with_zero)[0]) != float(scores(params, batch)[0])


def test_the_head_begins_with_the_stated_deviation_and_no_bias():
    head = init_scalar(jax.random.key(0), 4095)
    assert float(head["kernel"].std()) == pytest.approx(1 / 64, rel=0.03)
    assert float(head["bias"]) == 0.0
    assert not init_scalar(jax.random.key(0), 64, zero=True)["kernel"].any()


def test_scores_are_float32_sums_under_bfloat16():
    hidden = jnp.full((1, 1, 1024), 1.0078125, jnp.bfloat16)
    head = {"kernel": jnp.full(1024, 1.0), "bias": jnp.float32(0.25)}
    assert float(apply_scalar(head, hidden)[0, 0]) == 1024 * 1.0078125 + 0.25


def test_the_trunk_is_the_language_models_and_axes_match(model, params):
    trunk = model.language_model.init(jax.random.key(5))
    made = model.on_trunk(trunk, jax.random.key(6))
    jax.tree.map(np.testing.assert_array_equal, made["trunk"], trunk)
    axes = model.logical_axes()
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    jax.tree.map(
        lambda names, array: None if len(names) == array.ndim else pytest.fail(str(names)),
        axes,
        params,
        is_leaf=is_axes,
    )
