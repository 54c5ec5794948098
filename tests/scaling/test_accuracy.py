"""The second step: a sigmoid from loss to accuracy, and runs predicted from N and D alone."""

import dataclasses
import json

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.scaling.accuracy import second_step
from lmjax.scaling.approach3 import approach3
from lmjax.scaling.bootstrap import FitOptions
from tests.scaling.isoflop_tables import isoflop_table

FLOOR, CEILING, SLOPE, MIDPOINT = 0.25, 0.9, 2.5, 2.6


def sigmoid(loss):
    return FLOOR + (CEILING - FLOOR) / (1 + np.exp(SLOPE * (loss - MIDPOINT)))


def with_accuracy(values=sigmoid, table=None):
    table = isoflop_table() if table is None else table
    columns = {"accuracy": "acc", "loss": "loss"}
    return dataclasses.replace(table, extra={"accuracy": values(table.loss)}, columns=columns)


def stepped(table, samples=0, held_out=None):
    options = FitOptions(samples, held_out=held_out)
    return second_step(approach3(table, options)[0], options)


def test_the_sigmoids_constants_come_back():
    found = stepped(with_accuracy()).values
    for name, expected in (("floor", FLOOR), ("ceiling", CEILING), ("slope", SLOPE), ("midpoint", MIDPOINT)):
        assert found[name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.slow
def test_larger_runs_are_predicted_from_n_and_d_alone():
    table = with_accuracy()
    large = table.budget >= np.unique(table.budget)[-2]
    rng = np.random.default_rng(0)
    noisy = dataclasses.replace(table, loss=table.loss * np.exp(rng.normal(0, 0.0003, len(table))))
    shifted = with_accuracy(lambda loss: sigmoid(loss) + 0.01, table.take(large))  # what was measured is a point higher
    result = stepped(noisy.take(~large), samples=60, held_out=shifted)
    by_loss, by_sizes = result.held_out
    assert (by_loss.what, by_sizes.what) == ("--hold-out, by its loss", "--hold-out, by N and D")
    assert (by_sizes.fitted, by_sizes.rows, by_sizes.of) == (45, 18, "accuracy")
    assert by_loss.mean_error == pytest.approx(-0.01, abs=0.003)
    assert by_sizes.mean_error == pytest.approx(-0.01, abs=0.005)
    last = result.predictions[-1]
    assert 6 * last["N"] * last["D"] == pytest.approx(1e21) and last["predicted_loss"] == pytest.approx(
        last["loss"], rel=0.01
    )
    assert last["interval"][0] < last["predicted_accuracy"] < last["interval"][1]
    assert last["accuracy"] == pytest.approx(sigmoid(last["loss"]) + 0.01)
    assert any("mean error" in line for line in result.lines()) and any(
        "-1.0" in line and "p" in line for line in result.lines()
    )


def test_rows_without_an_accuracy_are_not_of_the_second_step():
    table = with_accuracy(lambda loss: np.where(np.arange(len(loss)) % 2, np.nan, sigmoid(loss)))
    assert stepped(table).values["midpoint"] == pytest.approx(MIDPOINT, rel=1e-4)
    with pytest.raises(UserError, match=r"--accuracy-column 'acc': 5 rows have an accuracy, expected at least 6"):
        stepped(with_accuracy(lambda loss: np.where(np.arange(len(loss)) < 5, sigmoid(loss), np.nan)))


def test_percentages_and_other_methods_are_refused(tmp_path, capsys):
    with pytest.raises(
        UserError, match=r"'acc': values from .* to .*, expected shares from 0 to 1; divide percentages"
    ):
        stepped(with_accuracy(lambda loss: 100 * sigmoid(loss)))
    (tmp_path / "runs.csv").write_text("params,tokens,loss,acc\n1e8,1e9,3,0.5\n")
    assert main(["fit", str(tmp_path / "runs.csv"), "--accuracy-column", "acc", "--method", "isoflop"]) == 2
    assert "--accuracy-column with --method isoflop: expected chinchilla" in capsys.readouterr().err
    (tmp_path / "few.csv").write_text("params,tokens,loss,acc\n1e7,1e9,3.4,0.4\n1e8,1e9,3,0.5\n1e9,1e9,2.8,0.6\n")
    assert main(["fit", str(tmp_path / "few.csv"), "--accuracy-column", "acc", "--method", "all"]) == 2
    assert "--accuracy-column: no loss can be predicted; chinchilla: too few points" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "runs.csv"), "--accuracy-column", "score"]) == 2
    assert "--accuracy-column 'score'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("optimized")
def test_pythias_larger_models_are_predicted_from_those_of_at_most_a_billion_and_a_half(shared_data, capsys):
    table = shared_data("scaling_pythia") / "pythia_zeroshot.csv"
    conditions = ["--where", "tokens>2e10", "--hold-out", "params_total>1.5B"]
    columns = ["--loss-column", "lambada_ppl", "--perplexity", "--accuracy-column", "lambada_acc"]
    assert main(["fit", str(table), *columns, *conditions, "--bootstrap", "50", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == 70 and "loss is the log of the column 'lambada_ppl'" in printed["notes"]
    by_loss, by_sizes = printed["accuracy"]["held_out"]
    assert by_loss["rows"] == by_sizes["rows"] == 42  # 2.8B, 6.9B, 12B at 14 steps each
    assert by_loss["mean_error"] == pytest.approx(-0.0076, abs=0.002)
    assert by_sizes["mean_error"] == pytest.approx(-0.030, abs=0.004)
    assert by_sizes["largest_error"] == pytest.approx(-0.066, abs=0.008)
    largest = printed["accuracy"]["predictions"][-1]
    assert largest["N"] == 11846072320 and largest["accuracy"] == pytest.approx(0.7046, abs=1e-3)
