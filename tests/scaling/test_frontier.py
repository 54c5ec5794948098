"""The frontier: what a budget buys, the compute that a table saves over another, exponents in other conventions."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.scaling.approach3 import approach3, fit_samples
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.frontier import optimum_at, savings
from lmjax.scaling.table import make_table
from tests.scaling.isoflop_tables import ALPHA, BETA, A, B, E, isoflop_table, law, optimal_params

NONE = FitOptions(samples=0)


def noisy(seed=0, scale=0.005, factor=1.0):
    table = isoflop_table()
    noise = np.random.default_rng(seed).normal(0, scale, len(table))
    return make_table(table.params, table.tokens, factor * table.loss * np.exp(noise))


def test_a_budget_buys_what_the_law_itself_says_with_intervals_that_grow_beyond_the_runs():
    best, sampled = fit_samples(noisy(), FitOptions(samples=100))
    inside, beyond = (optimum_at(flops, best, sampled) for flops in (1e20, 1e24))
    for found in (inside, beyond):
        assert 6 * found.params * found.tokens == pytest.approx(found.flops)
        assert found.loss == pytest.approx(float(best.loss(found.params, found.tokens)))
        low, high = found.intervals["loss"]
        truth = law(optimal_params(found.flops), found.flops / 6 / optimal_params(found.flops))
        assert low < truth < high
        assert found.intervals["params"][0] < optimal_params(found.flops) < found.intervals["params"][1]
    widths = [found.intervals["loss"][1] - found.intervals["loss"][0] for found in (inside, beyond)]
    assert widths[1] > 3 * widths[0]


def test_compute_at_a_loss_is_the_inverse_of_loss_at_a_compute():
    best, _ = fit_samples(isoflop_table(), NONE)
    for flops in (1e18, 1e21, 1e25):
        assert best.flops_of(best.frontier(flops)) == pytest.approx(flops, rel=1e-6)
    assert np.isnan(best.flops_of(E - 0.1))


def test_a_law_with_half_the_data_term_saves_the_compute_that_the_formula_says():
    table = isoflop_table()
    better = make_table(table.params, table.tokens, E + A / table.params**ALPHA + 0.5 * B / table.tokens**BETA)
    found = savings(better, table, NONE)
    gamma = ALPHA * BETA / (ALPHA + BETA)

    def level(b):  # of loss - E at C / 6 = 1
        G = (ALPHA * A / (BETA * b)) ** (1 / (ALPHA + BETA))
        return A * G**-ALPHA + b * G**BETA

    expected = (level(B) / level(0.5 * B)) ** (1 / gamma)
    assert [saving.ratio for saving in found] == pytest.approx([expected] * 5, rel=1e-4)
    assert [saving.other_flops / saving.flops for saving in found] == pytest.approx([expected] * 5, rel=1e-4)
    assert found[0].loss > found[-1].loss and found[0].interval is None


def test_equal_tables_save_nothing_within_their_interval_and_distant_ones_cannot_be_compared():
    for saving in savings(noisy(0), noisy(1), FitOptions(samples=60)):
        assert saving.interval[0] < 1 < saving.interval[1]
    with pytest.raises(UserError, match=r"--against: the frontiers have no loss in common"):
        savings(noisy(), noisy(factor=3.0), NONE)


def test_the_command_compares_two_tables_with_their_own_conditions(tmp_path, capsys):
    rows = [
        {"corpus": name, "params": n, "tokens": d, "loss": factor * v}
        for name, factor in (("web", 1.0), ("books", 0.98))
        for n, d, v in zip(*(getattr(isoflop_table(), field) for field in ("params", "tokens", "loss")), strict=True)
    ]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(rows))
    command = ["fit", str(path), "--where", "corpus=books", "--against", str(path), "--bootstrap", "0"]
    assert main([*command, "--against-where", "corpus=web", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["savings"]
    assert len(found) == 5 and all(saving["ratio"] > 1.05 for saving in found)
    assert main(command) == 0  # the same rows
    assert f"along both frontiers; {path} as the other" in capsys.readouterr().out
    assert main(["fit", str(path), "--against-where", "corpus=web"]) == 2
    assert "--against-where: it chooses rows of a second table; name one by --against" in capsys.readouterr().err


def test_the_exponent_over_flops_with_attention_is_that_of_the_least_loss_at_equal_flops():
    table = isoflop_table()
    k, g = 3.0, -0.08  # attention makes C larger than 6 N D, most for small models
    counted = 6 * table.params * table.tokens * k * table.params**g
    result = approach3(dataclasses.replace(table, flops=counted, columns={"flops": "flops"}), NONE)[0]
    (found,) = result.converted

    def best(flops):
        def loss(n):
            return law(np.exp(n), flops / (6 * np.exp(n) * k * np.exp(n) ** g))

        return minimize_scalar(loss, bounds=(10, 30), method="bounded", options={"xatol": 1e-9}).x

    assert found["a"] == pytest.approx((best(1e21) - best(1e19)) / np.log(100), abs=1e-4)
    assert abs(found["a"] - result.values["a"]) > 0.01
    low, high = (ratio(counted / (6 * table.params * table.tokens)) for ratio in (np.min, np.max))
    assert found["convention"] == f"C is the column 'flops', {low:.3g} to {high:.3g} times 6 N D"
