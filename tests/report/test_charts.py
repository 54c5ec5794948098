"""Curves keep what matters when thinned, and ticks can be told apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.report.charts import DARK, LIGHT, Chart, Series, svg, thinned, tick_label

VALUES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=200)


@given(VALUES, st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_thinning_keeps_extremes_mean_and_bounds(values, points):
    values = np.array(values)
    steps = np.arange(len(values), dtype=np.float64)
    curve = thinned(steps, values, points)
    assert all(len(column) == min(points, len(values)) for column in curve)
    assert (np.diff(curve.steps) > 0).all()
    finite = values[np.isfinite(values)]
    if not len(finite):
        assert np.isnan(curve.means).all()
        return
    assert np.nanmin(curve.lowest) == finite.min() and np.nanmax(curve.highest) == finite.max()
    groups = [group[np.isfinite(group)] for group in np.array_split(values, len(curve.means))]
    sizes = np.array([len(group) for group in groups])
    total = np.nansum(curve.means * sizes)
    np.testing.assert_allclose(total, finite.sum(), rtol=1e-9, atol=1e-6)


def test_a_short_curve_is_left_as_it_is_with_gaps_where_a_value_is_not_finite():
    steps, values = np.array([1.0, 5.0, 9.0]), np.array([3.0, np.inf, 2.0])
    curve = thinned(steps, values)
    np.testing.assert_array_equal(curve.steps, steps)
    np.testing.assert_array_equal(curve.means, [3.0, np.nan, 2.0])


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ((2.902, 2.904, 2.906), ("2.902", "2.904", "2.906")),
        ((0.0, 2e-5, 4e-5), ("0", "2e-5", "4e-5")),
        ((0.0, 5e-4, 1e-3), ("0", "0.5e-3", "1.0e-3")),
        ((0, 250_000, 500_000), ("0", "250k", "500k")),
        ((0, 500_000, 1_000_000), ("0", "0.5M", "1.0M")),
        ((4.0, 6.0, 8.0), ("4", "6", "8")),
    ],
)
def test_ticks_are_labelled_as_exactly_as_they_are_apart(ticks, labels):
    assert tuple(tick_label(tick, ticks) for tick in ticks) == labels


def test_a_value_between_two_gaps_is_drawn():
    """A line through one point alone has no length."""

    def markers(values):
        series = Series("loss", np.arange(1.0, len(values) + 1), np.array(values))
        return svg(Chart("loss", "Loss", (series,)), (330, 200), len(values), "small").count("<use")

    assert markers([1.0, np.nan, 3.0]) - markers([1.0, 2.0, 3.0]) == 3  # two dots, one cross


@pytest.mark.filterwarnings("error")
def test_an_axis_that_holds_zero_shows_what_is_below_it_too():
    """An estimate of a divergence may be negative; a curve outside the axes would squeeze them to nothing."""
    series = Series("kl", np.array([0.0, 2.0]), np.array([0.0, -0.0273]), marked=True)
    assert "<svg" in svg(Chart("kl", "KL", (series,), from_zero=True), (300, 185), 2, "small")


def test_curves_over_another_quantity_than_steps_span_what_they_hold():
    """Twice the steps leave a chart over steps half empty, and the others as they are."""
    series = Series("policy", np.array([0.5, 3.0]), np.array([1.0, 2.0]))
    over = [svg(Chart("a", "A", (series,), across="nats of KL"), (300, 185), last, "small") for last in (10, 20)]
    steps = [svg(Chart("a", "A", (series,)), (300, 185), last, "small") for last in (10, 20)]
    assert over[0] == over[1] and steps[0] != steps[1]
    assert "policy from 1 at 0.5 nats of KL to 2 at 3 nats of KL" in over[0]


def test_a_dashed_series_is_the_only_one_with_dashes():
    """Two quantities of one colour are told apart by nothing else; markers and grid lines have no dashes either."""

    def dashes(*dashed):
        series = tuple(Series("a", np.arange(3.0), np.arange(3.0), marked=True, dashed=each) for each in dashed)
        return svg(Chart("a", "A", series), (300, 185), 2, "small").count("stroke-dasharray")

    assert [dashes(False), dashes(True), dashes(False, True, True)] == [0, 1, 2]


def test_text_and_curves_stand_out_in_light_and_in_dark():
    """WCAG 2.1: text at 4.5 to 1 against the page, lines at 3 to 1."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for palette in (LIGHT, DARK):
        for ground in ("paper", "wash"):
            assert min(contrast(palette[role], palette[ground]) for role in ("ink", "muted")) >= 4.5
        assert min(contrast(palette[role], palette["paper"]) for role in ("first", "second", "alarm")) >= 3


def test_a_million_noisy_values_draw_as_small_as_a_thousand():
    def size(number):
        values = np.random.default_rng(0).normal(3.0, 0.5, number)
        series = Series("loss", np.arange(1.0, number + 1), values)
        return len(svg(Chart("loss", "Loss", (series,)), (880, 320), number, "wide"))

    assert size(1_000_000) < 1.1 * size(1000)
