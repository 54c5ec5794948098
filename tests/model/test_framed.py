"""A decoder with three rows behind its table reads them, and is otherwise the model that it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.frames import decoder_frame
from lmjax.model.framed import FramedModel
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ModelSettings

SETTINGS = ModelSettings(layers=1, width=16, context=8, vocab_size=20, attention=AttentionSettings(heads=2))
FRAME = decoder_frame(20)


@pytest.fixture(scope="module")
def model():
    return FramedModel(LanguageModel(SETTINGS), 3)


@pytest.fixture(scope="module")
def params(model):
    params = model.init(jax.random.key(0))
    return params | {"frame": params["frame"] + 1.0}


def rows(tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return {"tokens": tokens, "positions": positions, "segments": jnp.ones_like(tokens)}


def test_the_new_rows_are_read_as_those_of_a_longer_table(model, params):
    batch = rows([[FRAME.begin, 3, 4, FRAME.between, 5, FRAME.end], [FRAME.begin, 7, 7, 7, 7, FRAME.end]])
    longer = LanguageModel(dataclasses.replace(SETTINGS, vocab_size=23))
    table = jnp.concatenate([params["trunk"]["tokens"], params["frame"]])
    expected = jax.jit(longer.hidden)(params["trunk"] | {"tokens": table}, batch).hidden
    np.testing.assert_allclose(jax.jit(model.hidden)(params, batch).hidden, expected, atol=1e-6)
    outputs, _ = jax.jit(model.outputs_of)(params, batch)
    by_hand = np.asarray(expected)[:, -1] @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(outputs, by_hand, atol=1e-5, err_msg="Extract, the last real token, is read")


def test_a_text_without_them_is_read_as_before_and_the_logits_have_no_new_rows(model, params):
    batch = rows([[1, 3, 4, 5, 0, 2]])
    own = jax.jit(model.trunk.hidden)(params["trunk"], batch).hidden
    np.testing.assert_allclose(jax.jit(model.hidden)(params, batch).hidden, own, atol=1e-6)
    assert model.trunk.logits(params["trunk"], batch).shape == (1, 6, 20)


def test_each_row_that_is_read_learns_and_no_other(model, params):
    batch = rows([[FRAME.begin, 3, 4, FRAME.end]])
    slope = jax.jit(jax.grad(lambda params: (model.outputs_of(params, batch)[0] ** 2).sum()))(params)
    assert np.abs(slope["frame"]).sum(axis=1)[[0, 2]].min() > 0 and not slope["frame"][1].any(), "no Delimiter there"
    axes = model.logical_axes()
    assert axes["frame"] == (None, "embed") and params["frame"].shape == (3, 16)
