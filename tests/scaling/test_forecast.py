"""A forecast: the optimum under the table's own count of FLOPs, and an honest error where the run exists."""

import json

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.plan.candidates import Candidate
from lmjax.plan.search import Tried
from lmjax.plan.slices import find_slice
from lmjax.runs import forecast as module
from lmjax.runs.forecast import design, on_slice
from lmjax.scaling.bootstrap import FitOptions
from lmjax.scaling.chinchilla import ChinchillaFit
from lmjax.scaling.counting import Counting
from lmjax.scaling.forecast import forecast
from lmjax.scaling.rules import Trained, fixed
from lmjax.scaling.table import make_table
from lmjax.scaling.tuned import tuned
from lmjax.settings import AttentionSettings, DataSettings, ModelSettings, Pretrain, TokenizerSettings
from lmjax.settings.recipe_files import load_recipe

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28  # as published (Hoffmann et al. 2022)
TRUTH = ChinchillaFit(*map(np.array, (E, np.log(A), np.log(B), ALPHA, BETA, 0.0)))
BUDGETS = np.geomspace(1e18, 1e20, 5)
PLAIN = FitOptions(samples=0)
BASE = Pretrain(
    tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096),
    data=DataSettings(sequence_length=256),
    model=ModelSettings(layers=4, width=256, context=256, attention=AttentionSettings(heads=4)),
)


def loss(params, tokens):
    return E + A / params**ALPHA + B / tokens**BETA


def profiles(budgets=BUDGETS):
    """Seven sizes around the optimum of each budget, without noise."""
    center = np.repeat(TRUTH.optimum(budgets)[0], 7)
    params = center * np.tile(np.geomspace(1 / 4, 4, 7), len(budgets))
    tokens = np.repeat(budgets, 7) / (6 * params)
    return params, tokens


def table(budgets=BUDGETS):
    params, tokens = profiles(budgets)
    return make_table(params, tokens, loss(params, tokens))


def test_a_projection_is_the_optimum_of_the_formula():
    found = forecast(table(), 3e20, PLAIN)
    params, tokens = TRUTH.optimum(3e20)
    assert found.kind == "projection"
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=1e-3)
    assert found.loss == pytest.approx(float(loss(params, tokens)), rel=1e-6)
    assert found.counted == "C = 6 N D"
    assert not any("warning" in note for note in found.notes)


def test_a_budget_that_the_table_has_is_predicted_from_lower_ones():
    params, tokens = profiles()
    losses = loss(params, tokens)
    losses[-7:] *= 1.03  # of the largest budget: the fit does not see them
    found = forecast(make_table(params, tokens, losses), float(BUDGETS[-1]), FitOptions(samples=50))
    assert (found.kind, found.fitted) == ("prediction", 28)
    assert found.largest == pytest.approx(BUDGETS[-2])
    assert found.loss == pytest.approx(float(TRUTH.frontier(BUDGETS[-1])), rel=1e-5)
    assert found.measured.error == pytest.approx(1 / 1.03 - 1, abs=1e-5)
    assert found.measured.loss == losses[-7:].min()
    low, high = found.intervals["loss"]
    assert low <= found.loss <= high


def test_where_only_larger_runs_determine_the_formula_they_are_fitted_too():
    found = forecast(table(), float(BUDGETS[0]), PLAIN)
    assert (found.kind, found.fitted) == ("prediction", 28)
    assert found.notes[-1] == "too few runs have fewer FLOPs: those of more are fitted, too"


def test_ten_times_beyond_the_largest_run_is_warned_of():
    assert not any("warning" in note for note in forecast(table(), 9.9e20, PLAIN).notes)
    (note,) = [note for note in forecast(table(), 3e21, PLAIN).notes if "warning" in note]
    assert note == "warning: 30 times the FLOPs of the largest run, beyond 10 times a fit says little; add larger runs"


def test_the_optimum_is_under_the_tables_own_count_of_flops():
    how = Counting(k=0.8, g=0.05)
    params = np.geomspace(1e7, 1e11, 200_001)
    best = params[loss(params, how.tokens(1e20, params)).argmin()]
    assert float(how.optimum(1e20, TRUTH)) == pytest.approx(best, rel=1e-3)
    assert float(Counting().optimum(1e20, TRUTH)) == pytest.approx(float(TRUTH.optimum(1e20)[0]), rel=1e-12)


@pytest.mark.parametrize("flops", [0.0, -1e20, float("nan"), float("inf")])
def test_a_budget_is_a_number_above_0(flops):
    with pytest.raises(UserError, match=r"--flops = .*: expected a number above 0"):
        forecast(table(), flops, PLAIN)


def row(parameters, rate, rows, measured, budget, **more):
    fields = {"optimizer.learning_rate": rate, "data.batch_size": rows, "data.sequence_length": 256}
    steps = {"train.steps": 1000, "optimizer.schedule.warmup": 20}
    head = {"name": f"{parameters}-{rate}", "status": "done", "recipe": "x", "parameters": parameters}
    return head | {"loss": measured, "budget": budget, **fields, **steps, **more}


ROWS = [
    row(10**6, 1e-2, 8, 3.0, 1e15),
    row(10**6, 1e-1, 8, 3.5, 1e15),  # of the same budget and worse
    row(10**8, 1e-3, 128, 2.5, 1e18),
]


def test_rate_and_batch_follow_the_best_rows():
    found = tuned(ROWS)(_trained(10**10, tokens=1e12))
    assert found.learning_rate == pytest.approx(1e-4)
    assert found.batch_size == 2048
    assert found.warmup == int(0.02 * 1e12 / (2048 * 256))
    assert found.reason.startswith("from the best of 2 budgets: rate 10 N^-0.500 = 0.0001, batch 0.5 N^0.602")
    alone = tuned(ROWS[:2])(_trained(10**10, tokens=1e12))
    assert (alone.learning_rate, alone.batch_size) == (pytest.approx(1e-2), 8)


def _trained(parameters, tokens):
    model = ModelSettings(layers=1, width=4, vocab_size=8)
    counted = count(model)
    object.__setattr__(counted, "parameters", parameters)
    return Trained(model, counted, tokens, 256)


def test_rows_that_tell_no_rate_are_refused():
    with pytest.raises(UserError, match=r"no row tells optimizer.learning_rate.*; give --rule"):
        tuned([{"name": "a", "status": "done", "loss": 2.0, "parameters": 5}, ROWS[0] | {"status": "failed"}])


def test_the_run_has_the_proportions_of_the_base_and_the_nearest_size():
    found = forecast(table(), 1e21, PLAIN)
    run = design(found, BASE, fixed(1e-3, 64))
    model = run.recipe.model
    assert model.width == 64 * model.layers
    sizes = [abs(np.log(_size(layers) / found.params)) for layers in range(1, 60)]
    assert model.layers == 1 + int(np.argmin(sizes))
    assert run.tokens == run.recipe.train.steps * 64 * 256
    assert 6 * run.counted.parameters * run.tokens == pytest.approx(1e21, rel=1e-4)  # as the table counts
    assert run.loss == pytest.approx(found.law.best.loss(run.counted.parameters, run.tokens))
    assert run.loss > found.loss
    assert run.recipe.optimizer.learning_rate == 1e-3


def _size(layers):
    heads = AttentionSettings(heads=layers, head_dim=64)
    return count(
        ModelSettings(layers=layers, width=64 * layers, context=256, vocab_size=4096, attention=heads)
    ).parameters


def test_chip_hours_are_steps_times_the_seconds_of_the_quickest_layout(monkeypatch):
    run = design(forecast(table(), 1e21, PLAIN), BASE, fixed(1e-3, 64))
    asked = []

    def search(recipe, mesh, limit, **_):
        asked.append((recipe.plan.topology, limit))
        return _Found(recipe)

    monkeypatch.setattr(module, "search", search)
    found = on_slice(run, "v5e-64", 3, None, print)
    assert asked == [("v5e-64", 3)]
    hours = 1.5 * run.recipe.train.steps / 3600
    assert (found.slices.step_seconds, found.slices.hours) == (1.5, pytest.approx(hours))
    assert found.slices.chip_hours == pytest.approx(64 * hours)
    assert found.recipe.mesh.fsdp == 64
    assert found.recipe.plan.topology == "v5e-64"


class Quick(Tried):
    seconds = 1.5


class _Found:
    def __init__(self, recipe):
        self.where = find_slice("v5e-64")
        self.ranked = (Quick(Candidate((1, 1, 64, 1, 1), 1, "full"), None, None, False),)


@pytest.fixture
def rows_file(tmp_path):
    params, tokens = profiles(np.geomspace(1e13, 1e16, 6))
    lines = [
        row(int(n), 1e-3, 32, float(loss(n, d)), 0.0) | {"name": str(at), "tokens": float(d), "budget": None}
        for at, (n, d) in enumerate(zip(params, tokens, strict=True))
    ]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_recipe_that_is_written_is_one_that_run_takes(rows_file, tmp_path, capsys):
    written = tmp_path / "large.py"
    arguments = ["forecast", str(rows_file), "--flops", "3e16", "--base", "quickstart", "--bootstrap", "20"]
    assert main([*arguments, "--write", str(written), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recipe = load_recipe(str(written))
    run = found["run"]
    assert (recipe.name, recipe.train.steps, recipe.model.layers) == (run["name"], run["steps"], run["layers"])
    assert recipe.optimizer.learning_rate == pytest.approx(1e-3)
    assert recipe.tokenizer == load_recipe("quickstart").stages[0].tokenizer
    assert found["kind"] == "projection"
    assert main([*arguments, "--write", str(written)]) == 2
    assert "expected a file that does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write", "absent/a.py"], "expected a folder that exists"),
        (["--write", "a.txt"], "expected a file that ends in .py"),
        (["--limit", "3"], "expected --topology with it"),
    ],
)
def test_options_that_do_not_fit_are_refused(rows_file, options, message, capsys):
    assert main(["forecast", str(rows_file), "--flops", "3e16", "--bootstrap", "0", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_without_its_folders_asks_for_a_base(rows_file, capsys):
    assert main(["forecast", str(rows_file), "--flops", "3e16"]) == 2
    assert "no run's recipe is in" in capsys.readouterr().err


def test_another_table_gives_numbers_alone(tmp_path, capsys):
    params, tokens = profiles()
    path = tmp_path / "table.csv"
    lines = [f"{n},{d},{loss(n, d)}" for n, d in zip(params, tokens, strict=True)]
    path.write_text("\n".join(["params,tokens,loss", *lines]))
    assert main(["forecast", str(path), "--flops", "3e20", "--bootstrap", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "projection for 3e+20 FLOPs, from 35 runs of at most 1e+20; C = 6 N D"
    assert not any(line.startswith("  run ") for line in lines)
    assert main(["forecast", str(path), "--flops", "3e20", "--topology", "v5e-64"]) == 2
    assert "--topology = 'v5e-64': expected --base with it" in capsys.readouterr().err
