"""The benchmarks' steps of lmjax, whose losses the other side's must equal, and all of `gpu.py` in small."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lmjax.interop.huggingface import write_model
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ModelSettings

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


def alone():
    """The environment of a process with one CPU device."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def test_the_training_step_begins_at_the_loss_of_a_guess(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step = runpy.run_path(str(BENCHMARKS / "training_step.py"))
    shape = step["Shape"](layers=1, width=16, heads=2, context=32, rows=8, length=16)
    model = ModelSettings(1, 16, 32, shape.vocabulary, AttentionSettings(heads=2))
    write_model(tmp_path, model, LanguageModel(model).init(jax.random.key(0)))
    run = step["prepare_lmjax"](shape, tmp_path)
    first, *later = [run() for _ in range(4)]
    assert first == pytest.approx(math.log(shape.vocabulary), rel=1e-3)
    assert later[-1] < first


@pytest.mark.slow
def test_all_of_the_gpu_script_runs_in_small(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--json", tmp_path / "found.jsonl"]
    options = {"cwd": BENCHMARKS.parents[1], "capture_output": True, "text": True}
    ended = subprocess.run(list(map(str, command)), env=alone(), **options)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    found = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}
    assert list(found) == ["rate", "steps", "attention", "generation", "grpo", "resume"]
    assert [row["first_loss"] for row in found["steps"]] == pytest.approx([math.log(512)] * 2, rel=0.01)
    assert all(row["mfu"] > 0 for row in found["steps"])
    assert all(row["difference"] < 0.01 for row in found["attention"])
    assert found["resume"][0]["difference"] == 0 and "killed at step" in found["resume"][0]["what"]


def test_without_a_gpu_the_script_says_what_it_wants():
    ended = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True)
    assert ended.returncode == 1 and "gpu: JAX runs on cpu here: install lmjax[cuda]" in ended.stderr
