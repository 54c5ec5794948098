"""Approach 1: the sizes on the envelope of loss over compute, and what a table without curves is told."""

import dataclasses

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.envelope import approach1
from lmjax.scaling.kaplan import kaplan
from lmjax.scaling.table import make_table
from tests.scaling.isoflop_tables import EXPONENT, isoflop_table, law, optimal_params


def curves(sizes, tokens=np.geomspace(1e8, 1e13, 60)):
    N, D = (part.ravel() for part in np.meshgrid(sizes, tokens, indexing="ij"))
    return make_table(N, D, law(N, D))


def test_the_envelope_of_many_curves_has_the_laws_exponent_and_prefactor():
    result = approach1(curves(np.geomspace(1e7, 1e11, 40)), FitOptions(samples=50))[0]
    assert result.values["a"] == pytest.approx(EXPONENT, abs=0.002)
    assert result.values["b"] == pytest.approx(1 - EXPONENT, abs=0.002)
    assert result.values["k_N"] * 1e20 ** result.values["a"] == pytest.approx(optimal_params(1e20), rel=0.02)
    low, high = result.intervals["a"]
    assert low < EXPONENT < high and high - low < 0.05


def test_points_of_the_envelope_are_runs_between_a_smaller_and_a_larger_size():
    sizes = np.geomspace(1e8, 1e10, 9)
    result = approach1(curves(sizes), FitOptions(samples=0))[0]
    flops, params, tokens, loss = result.points.T
    assert set(np.round(params)) <= set(np.round(sizes[1:-1])) and len(params) >= 5
    np.testing.assert_allclose(loss, law(params, tokens), rtol=1e-3)
    np.testing.assert_allclose(flops, 6 * params * tokens, rtol=1e-6)
    np.testing.assert_allclose(np.log(params), np.log(optimal_params(flops)), atol=0.15)
    assert "% of the computes are left out: the lowest loss is at the smallest or largest size" in result.notes[1]


@pytest.mark.parametrize(("power", "said"), [(0.0, "C = 6 N D"), (-0.05, "6 N D x 2.5 N^-0.050, within 0.0%")])
def test_the_envelope_says_how_the_table_counts_the_flops_that_it_takes(power, said):
    plain = curves(np.geomspace(1e8, 1e10, 9))
    flops = plain.flops * (2.5 if power else 1.0) * plain.params**power
    table = dataclasses.replace(plain, flops=flops, columns=plain.columns | {"flops": "flops"})
    for method in (approach1, kaplan):
        results = [
            each for each in method(table, FitOptions(samples=0)) if each.method.endswith(("(approach 1)", "L(C)"))
        ]
        assert [each.to_json()["convention"].endswith(said) for each in results] == [True]


def test_an_envelope_at_the_edge_of_the_sizes_is_no_fit():
    with pytest.raises(
        UserError, match=r"no fit: 0 of 3 sizes have the lowest loss between a smaller and a larger one"
    ):
        approach1(curves(np.array([1e7, 2e7, 4e7]), np.geomspace(1e12, 1e14, 9)), FitOptions(samples=0))


def test_sizes_that_were_trained_on_one_number_of_tokens_are_too_few_points():
    with pytest.raises(UserError, match=r"too few points: 0 sizes have runs of several numbers of tokens"):
        approach1(isoflop_table().take(np.arange(9)), FitOptions(samples=0))
