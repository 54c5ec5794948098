"""What is installed from a wheel alone, in an empty environment, has the recipes and runs them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = ["--train.steps", "5", "--optimizer.schedule.warmup", "2", "--evaluation.sample-tokens", "4"]


def call(*words: object, folder: Path) -> str:
    """What a command prints, without variables of this environment that name its packages."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_the_quickstart(tmp_path):
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT, folder=tmp_path)
    (wheel,) = tmp_path.glob("lmjax-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"lmjax/experiments/{file.name}" for file in (ROOT / "experiments").glob("*.py")}
    assert recipes <= held and "lmjax/report/run.html" in held
    assert not [name for name in held if "benchmarks" in name or name.startswith(("tests", "experiments"))]

    call(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    python, lmjax = tmp_path / "venv/bin/python", tmp_path / "venv/bin/lmjax"
    call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, folder=tmp_path)
    where = call(python, "-c", "import lmjax; print(lmjax.__file__)", folder=tmp_path)
    assert where.startswith(str(tmp_path / "venv")), "not this checkout's"

    said = call(lmjax, "run", "quickstart", "--only", "pretrain", *STEPS, folder=tmp_path)
    assert "pretrain 5/5  loss " in said and (tmp_path / "runs/quickstart/pretrain/report.html").is_file()
    assert "did you mean" not in call(lmjax, "count", "gpt2:124m", folder=tmp_path)
