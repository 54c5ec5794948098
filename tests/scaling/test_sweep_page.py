"""A sweep's report: every run, the fits, and forecasts with their errors; without enough runs it says why."""

import re

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.scaling.sweep_table import SweepTable

BUDGETS = (1e15, 4e15, 1.6e16, 6.4e16)


def quiet(*_):
    pass


def write_table(folder, budgets=BUDGETS):
    """Seven sizes a budget around the published optimum, without noise; one run has diverged."""
    folder.mkdir()
    table = SweepTable(folder / "table.jsonl", quiet)
    for budget in budgets:
        for factor in np.geomspace(1 / 4, 4, 7):
            params = factor * 0.0995 * budget**0.49
            tokens = budget / 6 / params
            loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
            table.append(_row(f"c{budget:g}_n{params:.0f}", budget, params, tokens, loss))
    bad = _row("<b>bad</b>", BUDGETS[0], 1e5, 1e6, None) | {"status": "diverged", "error": "step 3: <i>no</i>"}
    table.append(bad | {"wall_seconds": None})


def _row(name, budget, params, tokens, loss):
    bits = None if loss is None else loss / np.log(2)
    sizes = {"parameters": int(params), "tokens": int(tokens), "flops": budget, "flops_spent": budget}
    row = {"name": name, "sweep": "fake", "recipe": "x", "status": "done", "budget": budget, **sizes}
    row |= {
        "loss": loss,
        "bits_per_byte": bits,
        "epochs": 0.5,
        "wall_seconds": 10.0,
        "finished": "2026-01-02T03:04:05Z",
    }
    return row | {"device_kind": "cpu", "devices": 1}


def cells(page, section):
    body = page.split(f">{section}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "fake"
    write_table(folder)
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


def test_every_run_is_in_the_page_with_its_cost(page):
    rows = cells(page, "Runs")
    assert len(rows) == 1 + 29
    assert rows[-1][0].startswith("c6.4e+16_n")
    assert all(row[6:] == ["0.50", "10 s", "done"] for row in rows[1:] if "bad" not in row[0])
    spent = 7 * sum(BUDGETS)
    assert f"28 runs of {spent:.3g} FLOPs in 4 min 40 s on 1 x cpu; 1 failed or diverged." in page
    assert "The last line of the log is of 2026-01-02 03:04 UTC." in page


def test_a_diverged_run_says_so_as_text(page):
    (row,) = [row for row in cells(page, "Runs") if "bad" in row[0]]
    assert row[0] == "&lt;b&gt;bad&lt;/b&gt;"
    assert row[4:] == ["", "", "0.50", "", "diverged: step 3: &lt;i&gt;no&lt;/i&gt;"]


def test_the_fits_are_those_of_the_formula(page):
    fits = {row[0]: row[1:] for row in cells(page, "Fits")}
    exact = fits["chinchilla (approach 3)"]
    values = [float(cell.split()[0]) for cell in exact]
    assert values == pytest.approx([0.452, 0.548, 1.69, 0.34, 0.28], abs=0.001)
    assert "isoflop (approach 2)" in fits
    assert not any("kaplan" in name for name in fits)


def test_the_largest_budget_is_predicted_and_the_next_projected(page):
    (_, known, coming) = cells(page, "Forecast")
    assert known[:2] == ["6.4e+16", "prediction"]
    assert abs(float(known[-1].rstrip("%"))) < 0.01
    assert coming[:2] == ["2.56e+17", "projection"]
    assert coming[-2:] == ["", ""]
    low, high = (float(end) for end in coming[5].split(" to "))
    assert low <= float(coming[4]) <= high


def test_the_page_needs_nothing_else_and_describes_its_picture(page):
    assert re.findall(r'<img src="(data:image/png;base64,)[\w+/=]+" alt="Loss over compute', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_too_few_runs_are_no_fit_and_the_page_says_so(tmp_path):
    write_table(tmp_path / "small", budgets=())
    table = SweepTable(tmp_path / "small" / "table.jsonl", quiet)
    table.append(_row("one", 1e15, 1e6, 1e8, 3.0))
    assert main(["report", str(tmp_path / "small")]) == 0
    page = (tmp_path / "small" / "report.html").read_text()
    assert "no fit: no method fits this table: chinchilla: too few points: 1 runs" in page
    assert ">Fits</h2>" not in page
    assert len(cells(page, "Runs")) == 3


def test_a_sweep_without_a_row_has_no_report(tmp_path, capsys):
    (tmp_path / "table.jsonl").write_text("")
    assert main(["report", str(tmp_path)]) == 2
    assert "table.jsonl: no run has ended; run lmjax sweep first" in capsys.readouterr().err
