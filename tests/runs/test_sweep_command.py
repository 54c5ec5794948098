"""`lmjax sweep` as a command: what it prints, refuses and survives."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lmjax.cli import main
from lmjax.scaling.sweep_table import SweepTable

RECIPE = """
from pathlib import Path
from lmjax.scaling.ladder import cooldowns, grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import *

TEXT = str(Path(__file__).parent / "text.txt")


def recipe():
    source = (SourceSettings(kind="text", path=TEXT, documents="line"),)
    base = Pretrain(
        data=DataSettings(train=source, validation=source, sequence_length=16),
        model=ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2)),
        evaluation=EvaluationSettings(every=1000),
        log=LogSettings(every=2, tensorboard=False),
    )
    rule = fixed(1e-2, 2, warmup=0.2)
    single = search(grid(base, [base.model], [320], rule), seeds=(0, 1))
    return Sweep("tiny", single + cooldowns(base, [base.model], [320, 640], rule))
"""


def quiet(*_):
    pass


@pytest.fixture
def recipe_file(tmp_path):
    rng, words = random.Random(0), ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "the", "sea"]
    (tmp_path / "text.txt").write_text("".join(" ".join(rng.choices(words, k=8)) + "\n" for _ in range(100)))
    (tmp_path / "sweep.py").write_text(RECIPE)
    return tmp_path / "sweep.py"


def test_a_dry_run_prints_every_run_and_trains_none(tmp_path, recipe_file, capsys):
    arguments = ["sweep", str(recipe_file), "--workdir", str(tmp_path / "run"), "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [(run["tokens"], run["steps"], run["hours"], run["status"]) for run in runs] == [
        (320, 10, None, "to run"),
        (320, 10, None, "to run"),
        (640, 20, None, "to run"),
        (320, 10, None, "to run"),
    ]
    assert [run["flops_spent"] / run["flops"] for run in runs] == pytest.approx([1, 1, 1, 0.2])
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 + 1 + 1
    assert lines[5] == "rate 0.01, 2 rows and 20.0% of warmup, as the sweep says"
    total = sum(run["flops_spent"] for run in runs)
    assert lines[6] == f"4 runs to run, {total:.3g} FLOPs; the hours are known once a run has finished"
    assert not (tmp_path / "run").exists()


def test_a_stage_is_no_sweep_and_a_sweep_no_stage(tmp_path, recipe_file, capsys):
    assert main(["run", str(recipe_file)]) == 2
    assert "a sweep of 4 runs; expected a stage or a pipeline; use lmjax sweep" in capsys.readouterr().err
    assert main(["sweep", "quickstart"]) == 2
    assert "a Pipeline; expected a Sweep; use lmjax run" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_share_that_does_not_exist_is_refused(recipe_file, shard, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["sweep", str(recipe_file), "--shard", shard])
    assert leaving.value.code == 2
    assert "expected I/N with I from 1 to N, such as 1/4" in capsys.readouterr().err


def _start(recipe_file, *more):
    command = [sys.executable, "-m", "lmjax.cli", "sweep", str(recipe_file), "--workdir", "run", *more]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, cwd=recipe_file.parent, env=environment, stdout=subprocess.PIPE, text=True)


def _results(folder):
    times = ("wall_seconds", "tokens_per_second", "finished")
    rows = SweepTable(folder / "table.jsonl", quiet).rows()
    return {name: {key: value for key, value in row.items() if key not in times} for name, row in rows.items()}


@pytest.mark.slow
def test_a_sweep_that_is_killed_20_times_ends_with_the_same_table(recipe_file):
    whole = _start(recipe_file)
    whole.communicate(timeout=600)
    expected = _results(recipe_file.parent / "run")
    assert (whole.returncode, len(expected)) == (0, 4)
    (recipe_file.parent / "run").rename(recipe_file.parent / "whole")
    rng, kills = random.Random(1), 0
    while kills < 20:
        process = _start(recipe_file)
        time.sleep(rng.uniform(1.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        table = recipe_file.parent / "run" / "table.jsonl"
        if len(_results(table.parent)) == 4:
            lines = table.read_bytes().splitlines(keepends=True)
            table.write_bytes(b"".join(lines[:-1]) + lines[-1][: rng.randrange(len(lines[-1]))])
    last = _start(recipe_file)
    last.communicate(timeout=600)
    assert last.returncode == 0
    assert _results(recipe_file.parent / "run") == expected


@pytest.mark.slow
def test_two_processes_share_a_sweep_without_a_coordinator(recipe_file):
    processes = [_start(recipe_file), _start(recipe_file)]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    lines = (recipe_file.parent / "run" / "table.jsonl").read_bytes().splitlines()
    assert len(lines) == len(_results(recipe_file.parent / "run")) == 4
    names = list(_results(recipe_file.parent / "run"))
    assert sorted(text.count(f"{name}: N") for name in names for text in said) == [0] * 4 + [1] * 4
