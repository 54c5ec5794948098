"""Measures of classes and scores against calculations by hand, definitions written out, and scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from lmjax.evaluate.classes import (
    accuracy,
    chosen,
    class_measures,
    f1,
    macro_f1,
    matthews,
    merged,
    pearson,
    score_measures,
    spearman,
)

RIGHT = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
PREDICTED = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])  # 3 hits, 1 missed, 1 too many, 5 rightly not


def test_two_classes_by_hand():
    assert accuracy(PREDICTED, RIGHT) == 0.8
    assert f1(PREDICTED, RIGHT) == 2 * (3 / 4) * (3 / 4) / (3 / 4 + 3 / 4) == 0.75
    assert f1(PREDICTED, RIGHT, of=0) == pytest.approx(5 / 6, abs=1e-12)
    by_hand = (3 * 5 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (5 + 1) * (5 + 1))
    assert matthews(PREDICTED, RIGHT) == pytest.approx(by_hand, abs=1e-12)
    assert class_measures(PREDICTED, RIGHT, 2) == {"accuracy": 0.8, "f1": 0.75, "matthews": matthews(PREDICTED, RIGHT)}


def test_precision_and_recall_that_differ_are_not_averaged():
    predicted, right = np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])
    precision, recall = 1 / 3, 1 / 1
    assert f1(predicted, right) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def test_matthews_of_two_classes_is_the_correlation_of_their_numbers():
    rng = np.random.default_rng(0)
    predicted, right = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    assert matthews(predicted, right) == pytest.approx(scipy.stats.pearsonr(predicted, right).statistic, abs=1e-12)


def test_matthews_of_several_classes_is_the_correlation_of_their_indicators():
    """Gorodkin 2004, equations 8 and 9: covariances of one-hot vectors, summed over the classes."""
    rng = np.random.default_rng(1)
    right = rng.integers(0, 4, 300)
    predicted = np.where(rng.random(300) < 0.5, right, rng.integers(0, 4, 300))
    one, two = np.eye(4)[predicted], np.eye(4)[right]
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    expected = (one * two).sum() / math.sqrt((one**2).sum() * (two**2).sum())
    assert matthews(predicted, right, 4) == pytest.approx(expected, abs=1e-12)


def test_the_mean_over_classes_counts_those_that_occur_alike():
    predicted, right = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    assert macro_f1(predicted, right, 4) == pytest.approx((0.8 + 0 + 0) / 3, abs=1e-12), "class 3 does not occur"
    assert class_measures(predicted, right, 4)["f1"] == macro_f1(predicted, right, 4)


def test_correlations_are_those_of_scipy_also_with_ties_and_far_from_zero():
    rng = np.random.default_rng(2)
    for shift in (0.0, 3000.0, 1e7):
        predicted = rng.normal(size=500) + shift
        right = np.round(predicted - shift + rng.normal(size=500), 1)  # with ties
        expected = scipy.stats.pearsonr(predicted, right).statistic
        assert pearson(predicted, right) == pytest.approx(expected, abs=1e-6 if shift > 1e6 else 1e-10)
        assert spearman(predicted, right) == pytest.approx(scipy.stats.spearmanr(predicted, right).statistic, abs=1e-12)
    assert score_measures(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])) == {
        "pearson": pytest.approx(9 / math.sqrt(84), abs=1e-12),
        "spearman": pytest.approx(1.0, abs=1e-12),
    }


def test_what_is_constant_correlates_with_nothing():
    constant, other = np.full(4, 0.1), np.array([1.0, 2.0, 3.0, 5.0])
    assert score_measures(constant, other) == score_measures(other, constant) == {"pearson": 0.0, "spearman": 0.0}
    assert matthews(np.zeros(4, int), np.array([0, 1, 1, 0])) == 0.0
    assert f1(np.zeros(4, int), np.zeros(4, int)) == 0.0


@pytest.mark.parametrize("measure", [accuracy, f1, matthews, pearson, spearman])
def test_arrays_of_different_lengths_and_none_at_all_are_errors(measure):
    with pytest.raises(ValueError, match="expected one length above 0"):
        measure(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="expected one length above 0"):
        measure(np.zeros(0, int), np.zeros(0, int))


WINDOWS = np.array([[0.6, 0.4], [0.6, 0.4], [0.0, 1.0], [0.3, 0.7]])
OF = np.array([0, 0, 0, 1])


def test_windows_are_merged_by_their_mean_or_by_vote():
    np.testing.assert_allclose(merged(WINDOWS, OF, 2), [[0.4, 0.6], [0.3, 0.7]], atol=1e-12)
    np.testing.assert_allclose(merged(WINDOWS, OF, 2, "vote"), [[2 / 3, 1 / 3], [0.0, 1.0]], atol=1e-12)
    assert chosen(WINDOWS, OF, 2).tolist() == [1, 1]
    assert chosen(WINDOWS, OF, 2, "vote").tolist() == [0, 1], "two windows against one"


def test_of_equal_votes_the_class_of_the_larger_mean_is_chosen():
    two = np.array([[0.6, 0.4], [0.1, 0.9]])
    assert chosen(two, np.array([0, 0]), 1, "vote").tolist() == [1]
    assert chosen(two[::-1, ::-1], np.array([0, 0]), 1, "vote").tolist() == [0]


def test_an_example_without_a_window_is_an_error():
    with pytest.raises(ValueError, match="3 examples, of which 1 have no window"):
        merged(WINDOWS, OF, 3)
