"""Published tables: the fits meet the refits that others have published, in objective and exponent."""

import json
import time

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.scaling.approach3 import fit_samples
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.isoflop import approach2
from lmjax.scaling.table import Selection, read_table

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("optimized")]

# a of approaches 3 and 2, and the summed Huber objective, from fits by scipy: L-BFGS-B from a grid of starts; polyfit.
MARIN = [
    ("comma", 0.00043485, 0.329, 0.426),
    ("dclm", 0.00036134, 0.368, 0.432),
    ("nemotron", 0.00038190, 0.374, 0.444),
]


def printed(capsys, *arguments) -> list | dict:
    assert main(["fit", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_chinchillas_runs_give_the_refit_of_besiroglu_and_others(shared_data, capsys):
    table = shared_data("scaling_chinchilla") / "svg_extracted_data.csv"
    columns = ["--params-column", "Model Size", "--flops-column", "Training FLOP", "--loss-column", "loss"]
    began = time.perf_counter()
    found = printed(capsys, table, "--method", "chinchilla", *columns, "--drop-highest-loss", 5)
    assert time.perf_counter() - began < 60
    assert found["rows"] == 240
    assert found["objective"] <= 0.0010183
    assert found["a"] == pytest.approx(0.514, abs=0.002) and found["a"] + found["b"] == pytest.approx(1)
    assert found["E"] == pytest.approx(1.817, abs=0.002)
    assert set(found["intervals"]) >= {"E", "A", "B", "alpha", "beta", "a", "b"}
    low, high = found["intervals"]["a"]
    assert low == pytest.approx(0.48, abs=0.01) and high == pytest.approx(0.56, abs=0.01)


def test_a_thousand_bootstrap_samples_take_less_than_two_minutes(shared_data):
    selection = Selection(params="Model Size", flops="Training FLOP", drop_highest_loss=5)
    table = read_table(shared_data("scaling_chinchilla") / "svg_extracted_data.csv", selection)
    began = time.process_time()
    _, sampled = fit_samples(table, FitOptions(samples=1000))
    assert time.process_time() - began < 240  # of two cores
    assert np.std(sampled.a) == pytest.approx(0.0198, abs=0.002)  # the paper's 0.020


@pytest.mark.parametrize(("corpus", "objective", "third", "second"), MARIN)
def test_marins_profiles_by_approaches_2_and_3(shared_data, corpus, objective, third, second):
    selection = Selection(where=(f"dataset={corpus}", "outlier=False"))
    table = read_table(shared_data("scaling_marin") / "marin_isoflops.csv", selection)
    best, _ = fit_samples(table, FitOptions(samples=0))
    assert best.objective <= objective
    assert best.a == pytest.approx(third, abs=0.001)
    result = approach2(table, FitOptions(samples=0))[0]
    assert len(result.points) == 6
    assert result.values["a"] == pytest.approx(second, abs=0.003)


@pytest.mark.slow
def test_the_two_approaches_disagree_on_marins_profiles_and_the_text_says_why(shared_data, capsys):
    table = str(shared_data("scaling_marin") / "marin_isoflops.csv")
    assert main(["fit", table, "--method", "all", "--where", "dataset=comma", "--where", "outlier=False"]) == 0
    out = capsys.readouterr().out
    assert "approaches 2 and 3 give a = 0.426 and 0.329: a parabola takes a profile for symmetric" in out
    assert table not in out  # its rows are named by their lines


@pytest.mark.slow
def test_the_exponent_without_embeddings_is_another_and_both_name_their_convention(shared_data, capsys):
    table = shared_data("scaling_misfitting") / "last_checkpoints.csv"
    counted = printed(capsys, table, "--bootstrap", 20)
    without = printed(capsys, table, "--bootstrap", 20, "--params-column", "N_no_emb")
    assert counted["convention"] == "N is the column 'N', with embeddings; C = 6 N D"
    assert without["convention"] == "N is the column 'N_no_emb', without embeddings; C = 6 N D"
    assert (counted["a"], without["a"]) == (pytest.approx(0.760, abs=0.002), pytest.approx(0.922, abs=0.002))
    (other,) = counted["converted"]
    assert other["a"] == pytest.approx(without["a"])
    assert other["convention"].startswith("N is the column 'N_no_emb', 0.21 to 0.847 times 'N'")
    assert other["interval"][0] < other["a"] < other["interval"][1]


OTHERS = [
    ("scaling_openlm", "openlm_dev.csv", ["--loss-column", "loss:openlm/shard_00000000.tar"], 69),
    ("scaling_isoflop_cs336", "isoflops_curves.json", [], 72),
    ("scaling_gemstones", "cooldown_end.jsonl", [], 199),
]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "file", "options", "rows"), OTHERS)
def test_other_tables_run_with_intervals(shared_data, capsys, folder, file, options, rows):
    found = printed(capsys, shared_data(folder) / file, "--bootstrap", 50, *options)
    assert found["rows"] == rows
    for name in ("E", "alpha", "beta", "a"):
        low, high = found["intervals"][name]
        assert low <= found[name] * (1 + 1e-6) and found[name] <= high * (1 + 1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "determined"),
    list(zip(OTHERS, (["chinchilla"], ["chinchilla", "isoflop"], ["chinchilla", "isoflop", "envelope"]), strict=True)),
    ids=[table[0] for table in OTHERS],
)
def test_other_tables_run_by_every_method_that_they_determine(shared_data, capsys, tmp_path, table, determined):
    folder, file, options, rows = table
    plot = ["--plot", str(tmp_path / "fit.png")]
    command = [
        "fit",
        str(shared_data(folder) / file),
        "--method",
        "all",
        "--bootstrap",
        "50",
        "--json",
        *plot,
        *options,
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    found = {result["method"].split(" (approach")[0]: result for result in json.loads(out)}
    assert [name for name in found if "kaplan" not in name] == determined
    assert set(found) >= {"kaplan L(N)", "kaplan L(D)", "kaplan L(C)", "kaplan L(N, D)"}
    for name in ("isoflop", "envelope"):
        assert (f"{name}: " in err) == (name not in determined)  # why not
    for name in determined:
        assert found[name]["rows"] == rows
        assert found[name]["intervals"]["a"][0] <= found[name]["a"] <= found[name]["intervals"]["a"][1]
    assert (tmp_path / "fit.png").stat().st_size > 50_000


def test_the_assignments_simulated_losses_follow_the_formula_exactly(shared_data):
    table = read_table(shared_data("scaling_isoflop_cs336") / "isoflops_curves.json")
    best, _ = fit_samples(table, FitOptions(samples=0))
    assert (best.E, best.alpha, best.beta) == pytest.approx((2.69, 0.34, 0.36), rel=1e-5)


@pytest.mark.slow
def test_the_longest_cooldowns_of_gemstones_are_predicted_as_well_as_the_fitted_rows_are_described(shared_data):
    """20 shapes differ in width and depth at one N, which N and D alone do not tell: that is the error that stays."""
    selection = Selection(hold_out=("tokens>1.04e11",))
    fitted, longest = read_table(shared_data("scaling_gemstones") / "cooldown_end.jsonl", selection).split()
    best, _ = fit_samples(fitted, FitOptions(samples=0))
    assert longest is not None and (len(fitted), len(longest)) == (180, 19)
    error_R, described_R = (best.loss(rows.params, rows.tokens) / rows.loss - 1 for rows in (longest, fitted))
    assert np.abs(error_R).mean() == pytest.approx(0.0115, abs=0.001)
    assert np.sqrt(np.mean(error_R**2)) < 1.25 * np.sqrt(np.mean(described_R**2))
    for size, error in zip(longest.params, error_R, strict=True):  # of one shape, the step from the next D below
        of_shape = fitted.params == size
        assert abs(error - described_R[of_shape][fitted.tokens[of_shape].argmax()]) < 0.005
