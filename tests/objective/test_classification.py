"""Losses of labelled rows against NumPy, with rows of very unequal weight; microbatches change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objective.classification import (
    choice_scores,
    class_loss,
    class_weighted,
    cosines,
    language_weights,
    row_weights,
    score_loss,
    unit,
    with_language,
)
from lmjax.objective.options import options_as_rows, present_options
from lmjax.objective.weighted import Weighted

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(6, 3)).astype(np.float32) * 4
LABELS = np.array([0, 2, 1, 1, 0, 2], np.int32)
WEIGHTS = np.array([1.0, 1.0, 0.0, 1.0, 100.0, 1.0], np.float32)


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_classes_are_a_weighted_mean_of_cross_entropies_and_factors_of_classes_are_divided_out():
    nats = -log_softmax(OUTPUTS.astype(np.float64))[np.arange(6), LABELS]
    right = OUTPUTS.argmax(axis=1) == LABELS
    loss, metrics = jax.jit(class_loss)(OUTPUTS, LABELS, WEIGHTS)
    assert float(loss.mean()) == pytest.approx((nats * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-6)
    assert float(metrics["accuracy"].mean()) == pytest.approx((right * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-6)
    factors = (1.0, 5.0, 0.25)
    weighed = WEIGHTS * np.array(factors)[LABELS]
    loss, metrics = class_loss(OUTPUTS, LABELS, class_weighted(LABELS, WEIGHTS, factors), WEIGHTS)
    assert float(loss.mean()) == pytest.approx((nats * weighed).sum() / weighed.sum(), rel=1e-6)
    assert float(metrics["cross_entropy"].mean()) == pytest.approx((nats * WEIGHTS).sum() / WEIGHTS.sum(), rel=1e-6)


def test_microbatches_of_very_unequal_weight_add_up_to_the_whole_batch():
    weights = class_weighted(LABELS, WEIGHTS, (1.0, 5.0, 0.25))
    whole, _ = class_loss(OUTPUTS, LABELS, weights)
    parts = [class_loss(OUTPUTS[at], LABELS[at], weights[at])[0] for at in (slice(4), slice(4, 6))]
    assert float((parts[0] + parts[1]).mean()) == pytest.approx(float(whole.mean()), rel=1e-6)


def test_scores_are_a_weighted_mean_of_squared_errors():
    loss, _ = score_loss(OUTPUTS[:, 0], OUTPUTS[:, 1], WEIGHTS)
    expected = ((OUTPUTS[:, 0] - OUTPUTS[:, 1]) ** 2 * WEIGHTS).sum() / WEIGHTS.sum()
    assert float(loss.mean()) == pytest.approx(expected, rel=1e-6)


def options(lengths):
    segments = (np.arange(5) < np.array(lengths)[..., None]).astype(np.int32)
    return {"segments": segments, "tokens": segments * 7, "labels": np.zeros(len(lengths), np.int32)}


def test_an_option_that_is_missing_has_no_probability_and_no_gradient():
    batch = options([[3, 2, 0], [1, 5, 2], [0, 0, 0]])
    assert present_options(batch).tolist() == [[True, True, False], [True] * 3, [False] * 3]
    labels, weights = np.array([1, 2, 0], np.int32), np.array([1.0, 1.0, 0.0], np.float32)

    def mean(scores):
        return class_loss(choice_scores(scores, batch), labels, weights)[0].mean()

    scores = np.array([[0.5, 1.0, 90.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], np.float32)
    value, slope = jax.jit(jax.value_and_grad(mean))(scores)
    expected = -(log_softmax(scores[0, :2])[1] + log_softmax(scores[1])[2]) / 2
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(slope).all() and slope[0, 2] == 0 and (slope[2] == 0).all()


def test_options_fold_into_rows_and_the_weight_of_an_example_is_shared_among_them():
    batch = options([[3, 2, 0], [1, 5, 2]])
    rows = options_as_rows(batch)
    assert rows.keys() == {"segments", "tokens"} and rows["tokens"].shape == (6, 5)
    assert (rows["tokens"].reshape(2, 3, 5) == batch["tokens"]).all()
    assert row_weights(batch, jnp.array([1.0, 6.0])).tolist() == [0.5, 0.5, 0.0, 2.0, 2.0, 2.0]


def test_the_auxiliary_loss_is_a_mean_for_each_text_and_then_for_the_batch():
    real = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    nats = RNG.random((3, 4)).astype(np.float32)
    rows = np.array([1.0, 1.0, 0.0], np.float32)
    weights = language_weights({"weights": real}, rows)
    by_hand = ((nats[0, 0] + nats[0, 1] + nats[0, 3]) / 3 + nats[1, 0]) / 2
    own = Weighted((nats * weights).sum(), weights.sum())
    assert float(own.sum / 2) == pytest.approx(by_hand, rel=1e-6)
    loss, metrics = with_language(Weighted(jnp.float32(3.0), jnp.float32(2.0)), {}, own, 0.5)
    assert float(loss.mean()) == pytest.approx(1.5 + 0.5 * by_hand, rel=1e-6)
    assert float(metrics["language_loss"].mean()) == pytest.approx(by_hand, rel=1e-6)


def test_cosines_of_unit_vectors_and_of_nothing():
    one, two = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
    expected = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    np.testing.assert_allclose(cosines(one, two), expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit(one * 1e-12), axis=1), 1.0, rtol=1e-5)
    slope = jax.grad(lambda x: cosines(x, two).sum())(np.zeros((4, 3), np.float32))
    assert (slope == 0).all(), "a row of padding has no direction"
