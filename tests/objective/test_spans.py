"""The loss of spans against an independent reference, with padding, rows of no weight, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.objective.spans import span_loss

LENGTHS, WEIGHTS = np.array([5, 3, 8, 0]), np.array([1.0, 0.25, 1.0, 0.0], np.float32)
SEGMENTS = (np.arange(8) < LENGTHS[:, None]).astype(np.int32)
SPANS = np.array([[2, 4], [0, 0], [7, 7], [0, 0]], np.int32)
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(4, 8, 2)).astype(np.float32)


def reference(scores, weights):
    """Sum of the losses, by loops."""
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for which in (0, 1) if weights[row] else ():
            z = np.exp(scores[row, :length, which].astype(np.float64))
            total -= weights[row] * np.log(z[SPANS[row, which]] / z.sum()) / 2
    return total


def loss_of(scores):
    return jax.jit(span_loss)(scores, SEGMENTS, SPANS, WEIGHTS)[0]


def test_the_loss_is_the_mean_over_first_and_last_columns_and_padding_has_no_part_in_it():
    loss = loss_of(SCORES)
    assert (float(loss.sum), float(loss.weight)) == (pytest.approx(reference(SCORES, WEIGHTS), rel=1e-6), 2.25)
    padded = np.where(SEGMENTS[..., None] == 0, 99.0, SCORES)
    assert float(loss_of(padded).sum) == float(loss.sum)
    longer = [np.pad(each, [(0, 0), (0, 3), *[(0, 0)] * (each.ndim - 2)]) for each in (SCORES, SEGMENTS)]
    assert float(jax.jit(span_loss)(*longer, SPANS, WEIGHTS)[0].sum) == pytest.approx(float(loss.sum), rel=1e-6)


def test_gradients_are_those_of_finite_differences_and_none_at_padding():
    gradient = np.asarray(jax.jit(jax.grad(lambda scores: loss_of(scores).sum))(jnp.asarray(SCORES)))
    assert np.isfinite(gradient).all()
    assert (gradient[(SEGMENTS == 0) | (WEIGHTS == 0)[:, None]] == 0).all()
    for place in ((0, 2, 0), (1, 1, 1), (2, 7, 1)):
        moved = [SCORES.astype(np.float64).copy() for _ in "ab"]
        moved[0][place] += 1e-4
        moved[1][place] -= 1e-4
        slope = (reference(moved[0], WEIGHTS) - reference(moved[1], WEIGHTS)) / 2e-4
        assert gradient[place] == pytest.approx(slope, abs=1e-6)


def test_a_span_is_right_where_both_columns_are():
    scores = np.zeros((4, 8, 2), np.float32)
    scores[0, [2, 4], [0, 1]] = scores[1, [0, 1], [0, 1]] = scores[2, [7, 7], [0, 1]] = 5
    _, metrics = jax.jit(span_loss)(scores, SEGMENTS, SPANS, WEIGHTS)
    assert (float(metrics["spans"].sum), float(metrics["spans"].weight)) == (2.0, 2.25)
