"""The picture of a fit: four panels, what is in them, and what they say where a method gives nothing."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest

from lmjax.cli import main
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.methods import fit_table
from lmjax.scaling.plot import drawn, write_plot
from tests.scaling.isoflop_tables import EXPONENT, isoflop_table, law


def figure(*methods, samples=0, held_out=None, table=None):
    table = isoflop_table() if table is None else table
    options = FitOptions(samples, held_out=held_out)
    results = [result for method in methods for result in fit_table(table, method, options)[0]]
    return drawn(table, results, held_out).axes[:4]


def labels(axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def test_methods_share_four_panels():
    losses, profiles, optima, residuals = figure("chinchilla", "isoflop", samples=20)
    assert labels(losses) == ["frontier (approach 3)", "extrapolated"]
    assert len(losses.collections) == 2  # runs, and the band of the samples
    frontier = losses.lines[0]
    assert frontier.get_xdata()[-1] == pytest.approx(1e21) and losses.lines[1].get_xdata()[-1] == pytest.approx(1e22)
    assert "1e+18" in labels(profiles) and "minimum, isoflop (approach 2)" in labels(profiles)
    assert f"N, chinchilla (approach 3), a = {EXPONENT:.3f}" in labels(optima)
    assert f"D, isoflop (approach 2), b = {1 - EXPONENT:.3f}" in labels(optima)
    assert residuals.get_title() == "residuals of chinchilla (approach 3)"
    assert np.abs(residuals.collections[0].get_offsets()[:, 1]).max() < 1e-5


def test_rows_held_out_are_marked_in_losses_and_residuals():
    table = isoflop_table()
    largest = table.budget == table.budget.max()
    losses, _, _, residuals = figure("chinchilla", held_out=table.take(largest), table=table.take(~largest))
    assert "held out" in labels(losses) and "held out" in labels(residuals)


def test_the_frontier_is_drawn_at_computes_as_the_table_counts_them():
    """C = 6 N D x 3 N^-0.05: the least loss at C is found by trying sizes."""
    plain = isoflop_table()
    flops = plain.flops * 3 * plain.params**-0.05
    table = dataclasses.replace(plain, flops=flops, columns=plain.columns | {"flops": "flops"})
    losses, _, optima, _ = figure("chinchilla", table=table)
    sizes = np.geomspace(1e6, 1e13, 200_001)
    for C, loss in list(zip(*losses.lines[0].get_data(), strict=True))[::40]:
        tried = law(sizes, C / (18 * sizes**0.95))
        assert loss == pytest.approx(tried.min(), rel=1e-4)
    C, N = (values[-1] for values in optima.lines[0].get_data())
    assert pytest.approx(sizes[law(sizes, C / (18 * sizes**0.95)).argmin()], rel=1e-2) == N


@pytest.mark.slow
def test_panels_that_a_method_does_not_fill_say_so():
    losses, profiles, _, residuals = figure("isoflop")
    assert labels(losses) == [] and len(profiles.lines) == 7 + 1  # parabolas and minima
    assert residuals.texts[0].get_text() == "this method has no prediction of a run's loss"
    rows = isoflop_table().take(np.arange(0, 63, 8))
    _, profiles, optima, _ = figure("kaplan", table=rows)
    assert profiles.texts[0].get_text() == "no budget has 4 runs of three sizes"
    assert optima.texts[0].get_text() == "none of these methods gives an optimum"


def test_the_file_is_a_png_of_the_stated_size(tmp_path, capsys):
    results, _ = fit_table(isoflop_table(), "chinchilla", FitOptions(0))
    write_plot(tmp_path / "fit.png", isoflop_table(), results)
    assert matplotlib.image.imread(tmp_path / "fit.png").shape[:2] == (765, 1035)
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e8,1e9,3\n")
    assert main(["fit", str(tmp_path / "runs.csv"), "--plot", str(tmp_path / "fit.pdf")]) == 2
    assert "expected a file that ends in .png" in capsys.readouterr().err
