"""The language-model loss: what counts, what does not, and in which precision."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.train_state import TrainState
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings, OptimizerSettings
from lmjax.training.step import make_train_step

B, T, V, REAL = 4, 8, 40, 33
SETTINGS = ModelSettings(layers=1, width=16, context=T, vocab_size=V, attention=AttentionSettings(heads=2), dropout=0.2)


def make_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, REAL, (B, T + 1)).astype(np.int32)
    weights = np.ones((B, T), np.float32)
    weights[1, 1:], weights[2] = 0.0, 0.0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weights,
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "segments": np.ones((B, T), np.int32),
    }


MODEL = LanguageModel(SETTINGS)


@functools.cache
def params():
    """A fresh model's, but made without compiling its initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.02, shapes)


@functools.cache
def loss_of(**terms):
    return jax.jit(functools.partial(language_loss(MODEL, **terms), rng=None))


def test_the_loss_is_of_the_models_logits_over_real_tokens_at_weighted_places():
    batch = make_batch()
    loss, metrics = loss_of(valid_vocab=REAL)(params(), batch)
    logits = np.asarray(jax.jit(MODEL.logits)(params(), batch), np.float64)[..., :REAL]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(loss.mean(), -(chosen * batch["weights"]).sum() / (2 * T + 1), rtol=1e-5)
    correct = (logits.argmax(-1) == batch["targets"]) * batch["weights"]
    np.testing.assert_allclose(metrics["accuracy"].mean(), correct.sum() / (2 * T + 1), rtol=1e-6)


def test_what_stands_at_unweighted_targets_changes_nothing():
    batch, other = make_batch(), make_batch()
    other["targets"] = np.where(batch["weights"] == 0, (batch["targets"] + 1) % REAL, batch["targets"])
    assert float(loss_of()(params(), batch)[0].sum) == float(loss_of()(params(), other)[0].sum)


def test_the_settings_reach_the_loss():
    terms = ({}, {"z_loss": 0.1}, {"label_smoothing": 0.5}, {"valid_vocab": REAL})
    plain, z, smooth, cut = (float(loss_of(**term)(params(), make_batch())[0].mean()) for term in terms)
    assert z - plain == pytest.approx(0.1 * np.log(V) ** 2, rel=0.05)  # logits of a fresh model are nearly 0
    assert smooth != plain
    assert plain - cut == pytest.approx(np.log(V / REAL), rel=0.05)


def test_a_key_draws_dropout_and_without_one_there_is_none():
    dropping = jax.jit(language_loss(MODEL))
    drawn = [float(dropping(params(), make_batch(), jax.random.key(seed))[0].sum) for seed in (1, 2)]
    undropped = language_loss(LanguageModel(dataclasses.replace(SETTINGS, dropout=0.0)))
    whole = float(jax.jit(undropped)(params(), make_batch(), jax.random.key(1))[0].sum)
    assert float(loss_of()(params(), make_batch())[0].sum) == pytest.approx(whole, rel=1e-6)
    assert len({*drawn, whole}) == 3


def test_in_bfloat16_losses_gradients_and_the_state_stay_float32():
    """Traced only: what a step gives for a model that computes in bfloat16, and that it does compute so."""
    model = LanguageModel(SETTINGS, ComputeSettings(dtype="bfloat16"))
    optimizer = make_optimizer(OptimizerSettings(), lambda step: jnp.float32(1e-3), model.logical_axes())
    state = jax.eval_shape(lambda: TrainState.create(model.init(jax.random.key(0)), optimizer))
    step = make_train_step(language_loss(model, z_loss=1e-4), optimizer, microbatches=2)
    after, metrics = jax.eval_shape(step, state, make_batch())
    kinds = {leaf.dtype for leaf in jax.tree.leaves((after.params, after.opt_state, metrics))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert jax.eval_shape(model.hidden, state.params, make_batch()).hidden.dtype == jnp.bfloat16
    logits = jax.eval_shape(model.logits, state.params, make_batch())
    assert logits.dtype == jnp.float32
