"""Tables of one sweep from several workdirs become one, which nothing else gets into."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.runs.sweep_merge import merge_tables
from lmjax.runs.sweep_units import digest, share_of
from lmjax.scaling.ladder import grid, search
from lmjax.scaling.rules import fixed
from lmjax.scaling.sweep_table import SweepTable
from lmjax.settings import AttentionSettings, DataSettings, ModelSettings, OptimizerSettings, Pretrain, Sweep

MODEL = ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2))
BASE = Pretrain(data=DataSettings(sequence_length=16), model=MODEL)
SWEEP = Sweep("four", search(grid(BASE, [MODEL], [320, 640], fixed(1e-2, 2)), seeds=(0, 1)))
SHARE = Path(__file__).parents[2] / "tpu_setup" / "share.sh"


def quiet(*_):
    pass


def table(folder, runs, **fields):
    folder.mkdir(exist_ok=True)
    for run in runs:
        row = {"name": run.name, "sweep": SWEEP.name, "recipe": digest(run), "status": "done", "loss": 1.5}
        SweepTable(folder / "table.jsonl", quiet).append(row | fields)
    return folder


@pytest.fixture
def shares(tmp_path):
    """Two workdirs, each with the rows of its share."""
    parts = [[run for unit in share_of(SWEEP, (i, 2)) for run in unit] for i in (1, 2)]
    return [table(tmp_path / f"share-{i}", runs, place=i) for i, runs in enumerate(parts)]


def test_the_tables_of_all_shares_make_the_whole_one_and_merging_twice_changes_nothing(tmp_path, shares):
    rows = merge_tables(SWEEP, tmp_path / "all", shares, quiet)
    assert sorted(rows) == sorted(run.name for run in SWEEP.runs)
    expected = {}
    for share in shares:
        expected |= SweepTable(share / "table.jsonl", quiet).rows()
    assert rows == expected
    before, said = (tmp_path / "all" / "table.jsonl").read_bytes(), []
    assert merge_tables(SWEEP, tmp_path / "all", [*shares, tmp_path / "all"], said.append) == rows
    assert (tmp_path / "all" / "table.jsonl").read_bytes() == before
    assert [line.partition(": ")[2] for line in said] == [
        "0 rows added, 2 were there already",
        "0 rows added, 2 were there already",
        "0 rows added, 4 were there already",
    ]


def test_a_row_that_is_there_stays_and_of_two_the_first_counts(tmp_path, shares):
    own = table(tmp_path / "own", SWEEP.runs[:1], status="failed")
    other = table(tmp_path / "other", SWEEP.runs, loss=9.0)
    rows = merge_tables(SWEEP, own, [*shares, other], quiet)
    assert rows[SWEEP.runs[0].name]["status"] == "failed"
    assert [rows[run.name]["loss"] for run in SWEEP.runs[1:]] == [1.5] * 3
    assert len((own / "table.jsonl").read_bytes().splitlines()) == 4


def test_an_unfinished_line_of_a_share_is_no_row(tmp_path, shares):
    path = shares[1] / "table.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert len(merge_tables(SWEEP, tmp_path / "all", [path], quiet)) == 1


def faster(run):
    stage = dataclasses.replace(run.stage, optimizer=OptimizerSettings(learning_rate=2e-2))
    return dataclasses.replace(run, stage=stage)


@pytest.mark.parametrize(
    ("runs", "fields", "message"),
    [
        ([faster(SWEEP.runs[0])], {}, r"row '\S+' is of another recipe than the sweep's run of that name"),
        (SWEEP.runs[:1], {"sweep": "five"}, r"row '\S+' is of the sweep 'five'; expected those of 'four'"),
        (SWEEP.runs[:1], {"name": "c1e12_n1m_d1m"}, r"row 'c1e12_n1m_d1m' is of no run of the sweep 'four'"),
    ],
)
def test_rows_of_another_sweep_or_recipe_are_refused_before_any_is_added(tmp_path, shares, runs, fields, message):
    strange = table(tmp_path / "strange", runs, **fields)
    with pytest.raises(UserError, match=rf"{re.escape(str(strange))}/table.jsonl: {message}"):
        merge_tables(SWEEP, tmp_path / "all", [*shares, strange], quiet)
    assert not (tmp_path / "all").exists()


def test_a_table_that_is_absent_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(UserError, match=r"--merge = .*: expected the table.jsonl of a sweep, or its workdir"):
            merge_tables(SWEEP, tmp_path / "all", [given], quiet)


RECIPE = """
from pathlib import Path
from lmjax.scaling.ladder import grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import *

TEXT = str(Path(__file__).parent / "text.txt")


def recipe():
    source = (SourceSettings(kind="text", path=TEXT, documents="line"),)
    model = ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2))
    base = Pretrain(
        data=DataSettings(train=source, validation=source, sequence_length=16),
        model=model,
        evaluation=EvaluationSettings(every=1000),
        log=LogSettings(every=2, tensorboard=False),
    )
    return Sweep("four", search(grid(base, [model], [320, 64000], fixed(1e-2, 2)), seeds=(0, 1)))
"""


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"the {n} cats sat on {n * n} mats\n" for n in range(100)))
    (tmp_path / "sweep.py").write_text(RECIPE)
    return tmp_path / "sweep.py"


@pytest.mark.parametrize("option", [["--shard", "1/2"], ["--dry-run"], ["--plan", "--topology", "v5e-4"]])
def test_merging_is_done_by_itself(tmp_path, recipe_file, option, capsys):
    assert main(["sweep", str(recipe_file), "--merge", str(tmp_path), *option]) == 2
    assert "--merge = 1: expected neither --shard, --dry-run nor --plan with it" in capsys.readouterr().err


def start(recipe_file, index):
    """A share as the schedulers start it, in a workdir of its own."""
    command = ["bash", str(SHARE), "--shares", "2", "--index-from", "AT", "--"]
    command += [sys.executable, "-m", "lmjax.cli", "sweep", "sweep.py", "--workdir", "run-{share}"]
    environment = os.environ | {"AT": str(index), "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, cwd=recipe_file.parent, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_shares_that_are_preempted_resume_and_make_the_table_of_an_undivided_sweep(tmp_path, recipe_file, capsys):
    first, second = start(recipe_file, 0), start(recipe_file, 1)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("run-1/runs/*_d64k_*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 143
    again = start(recipe_file, 0)
    said = again.communicate(timeout=600)[0]
    assert (again.returncode, second.wait(600)) == (0, 0)
    assert said.count(": N ") == 1, "the run that was done is not trained again"
    arguments = ["sweep", str(recipe_file), "--workdir", str(tmp_path / "all"), "--merge"]
    assert main([*arguments, str(tmp_path / "run-1"), str(tmp_path / "run-2" / "table.jsonl")]) == 0
    assert "4 of 4 runs have a row" in capsys.readouterr().out
    command = [sys.executable, "-m", "lmjax.cli", "sweep", "sweep.py", "--workdir", "whole"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    times = ("wall_seconds", "tokens_per_second", "finished")
    merged, whole = (
        {
            name: {key: value for key, value in row.items() if key not in times}
            for name, row in SweepTable(tmp_path / folder / "table.jsonl", quiet).rows().items()
        }
        for folder in ("all", "whole")
    )
    assert merged == whole and len(whole) == 4
