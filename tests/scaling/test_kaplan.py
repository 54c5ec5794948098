"""Kaplan's five laws: tables made from the published constants (arXiv:2001.08361, tables 2 and 3) give them back."""

import json

import numpy as np
import pytest
from scipy.optimize import brentq

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.kaplan import PF_DAY, kaplan
from lmjax.scaling.table import make_table

PARAMS, TOKENS = np.geomspace(1e6, 1e9, 5), np.geomspace(2e7, 2e10, 5)
NONE = FitOptions(samples=0)


def laws(table, options=NONE):
    return {result.method: result for result in kaplan(table, options)}


def crossed(*axes):
    return [part.ravel() for part in np.meshgrid(*axes, indexing="ij")]


def test_the_law_of_parameters_and_that_of_tokens_come_back_from_the_best_rows_at_each():
    N, D = crossed(PARAMS, TOKENS)
    worse = np.where(TOKENS.max() == D, 1.0, 1.5)  # rows that stop early are not of L(N)
    found = laws(make_table(N, D, (8.8e13 / N) ** 0.076 * worse))["kaplan L(N)"]
    assert found.values["alpha_N"] == pytest.approx(0.076, rel=1e-6)
    assert found.values["N_c"] == pytest.approx(8.8e13, rel=1e-5)
    assert len(found.table) == 5
    found = laws(make_table(N, D, (5.4e13 / D) ** 0.095 * np.where(PARAMS.max() == N, 1.0, 1.5)))["kaplan L(D)"]
    assert found.values["alpha_D"] == pytest.approx(0.095, rel=1e-6)
    assert found.values["D_c"] == pytest.approx(5.4e13, rel=1e-5)


def test_the_law_of_compute_comes_back_in_pf_days():
    flops = np.repeat(np.geomspace(1e16, 1e20, 5), 3)
    N = np.tile([1e7, 3e7, 1e8], 5)
    loss = (3.1e8 * PF_DAY / flops) ** 0.050 * np.tile([1.1, 1.0, 1.2], 5)
    found = laws(make_table(N, flops / 6 / N, loss))["kaplan L(C)"]
    assert found.values["alpha_C"] == pytest.approx(0.050, rel=1e-6)
    assert found.values["C_c_pf_days"] == pytest.approx(3.1e8, rel=1e-4)


def test_the_joint_law_of_parameters_and_tokens_comes_back_with_its_optimum():
    N, D = crossed(PARAMS, TOKENS)
    alpha_N, alpha_D, N_c, D_c = 0.076, 0.103, 6.4e13, 1.8e13
    found = laws(make_table(N, D, ((N_c / N) ** (alpha_N / alpha_D) + D_c / D) ** alpha_D))["kaplan L(N, D)"]
    for name, expected in (("alpha_N", alpha_N), ("alpha_D", alpha_D), ("N_c", N_c), ("D_c", D_c)):
        assert found.values[name] == pytest.approx(expected, rel=1e-4), name
    grid = np.geomspace(1e6, 1e12, 200_001)
    best = [grid[((N_c / grid) ** (alpha_N / alpha_D) + D_c * 6 * grid / C).argmin()] for C in (1e18, 1e20)]
    assert found.values["a"] == pytest.approx(np.log(best[1] / best[0]) / np.log(100), abs=1e-3)


def stepped(batches, alpha_N=0.077, alpha_S=0.76, N_c=6.5e13, S_c=2.1e3, B_star=2.1e8, alpha_B=0.21):
    """Rows whose loss is that of L(N, S_min), where S_min depends on the loss itself."""
    N, S, batch = crossed(PARAMS, np.geomspace(3e3, 1e6, 5), np.asarray(batches))

    def excess(loss, n, s, b):
        s_min = s / (1 + B_star / loss ** (1 / alpha_B) / b)
        return (N_c / n) ** alpha_N + (S_c / s_min) ** alpha_S - loss

    loss = [brentq(excess, 1.0, 50.0, args=row, xtol=1e-13) for row in zip(N, S, batch, strict=True)]
    return make_table(N, S * batch, loss, steps=S)


def test_the_law_of_parameters_and_steps_comes_back_with_the_critical_batch_size():
    found = laws(stepped([2**15, 2**18, 2**21]))["kaplan L(N, S_min)"]
    for name, expected in (("alpha_N", 0.077), ("alpha_S", 0.76), ("alpha_B", 0.21)):
        assert found.values[name] == pytest.approx(expected, rel=1e-4), name
    for name, expected in (("N_c", 6.5e13), ("S_c", 2.1e3), ("B_star", 2.1e8)):
        assert found.values[name] == pytest.approx(expected, rel=1e-3), name
    assert found.values["a"] == pytest.approx((1 / 0.077) / (1 / 0.077 + 1 / 0.76 + 1 / 0.21), rel=1e-4)


def test_one_batch_size_takes_the_critical_batch_size_as_published_and_says_so():
    found = laws(stepped([2**19]))["kaplan L(N, S_min)"]
    assert (found.values["B_star"], found.values["alpha_B"]) == (pytest.approx(2.1e8), pytest.approx(0.21))
    assert found.values["alpha_S"] == pytest.approx(0.76, rel=1e-4)
    assert found.values["S_c"] == pytest.approx(2.1e3, rel=1e-3)
    assert (
        "the runs have 1 batch size, which do not determine B_crit: B_star and alpha_B are as published"
        in found.notes[0]
    )


def test_laws_that_a_table_does_not_determine_are_named_and_none_is_an_error():
    N, D = crossed(PARAMS, TOKENS[:2])
    found = kaplan(make_table(N, D, (8.8e13 / N) ** 0.076), NONE)
    assert [result.method for result in found] == ["kaplan L(N)", "kaplan L(C)"]
    assert "L(D) is not fitted: the runs have 2 different values of D, expected at least 3" in found[0].notes
    assert any(
        note.startswith("L(N, S_min) is not fitted: the table has no column of steps") for note in found[0].notes
    )
    with pytest.raises(UserError, match=r"L\(N\) is not fitted: the runs have 1 different values of N.*L\(C\) is not"):
        kaplan(make_table([1e7, 1e7], [1e8, 1e9], [3.0, 2.9]), NONE)


@pytest.mark.slow
def test_samples_choose_the_best_of_the_rows_that_they_drew():
    rng = np.random.default_rng(0)
    N = np.repeat(PARAMS, 8)
    loss = (8.8e13 / N) ** 0.076 * np.exp(rng.exponential(0.01, len(N)))
    found = laws(make_table(N, np.tile(TOKENS, 8), loss), FitOptions(samples=100))["kaplan L(N)"]
    low, high = found.intervals["alpha_N"]
    assert low < 0.076 < high and 1e-5 < high - low < 0.01


def test_the_command_prints_a_list_and_reads_the_column_of_steps(tmp_path, capsys):
    table = stepped([2**15, 2**18, 2**21])
    names = ("params", "tokens", "updates", "loss")
    arrays = (table.params, table.tokens, table.extra["steps"], table.loss)
    (tmp_path / "runs.jsonl").write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in zip(*arrays, strict=True))
    )
    command = ["fit", str(tmp_path / "runs.jsonl"), "--method", "kaplan", "--json", "--bootstrap", "0"]
    assert main([*command, "--steps-column", "updates"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [result["method"] for result in found][-1] == "kaplan L(N, S_min)"
    assert found[-1]["B_star"] == pytest.approx(2.1e8, rel=1e-3)
