"""docs/python.md and the notebook run as they stand, and say what they show."""

import os
import re
import runpy
from pathlib import Path

import nbclient
import nbformat
import pytest

import lmjax
from tests.running import saved_steps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
(LOOP,) = [block for block in BLOCKS if block.startswith("# loop.py")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which lmjax's recipes are, as in the project's own, and the text that the page trains on."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "my.txt").write_text("def scan(text):\n    return [word for word in text.split(',')]\n" * 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(folder, name, text):
    (folder / name).write_text(text)
    return runpy.run_path(name)


def test_a_loop_of_ones_own_is_25_lines_and_resumes(folder, compiled_once):
    lines = [line for line in LOOP.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 25 and max(map(len, lines)) <= 120
    said = run_script(folder, "loop.py", LOOP.replace("40", "20").replace("512", "280"))
    assert len(said["state"].params["tokens"].sharding.device_set) == 8
    longer = run_script(folder, "loop.py", LOOP.replace("512", "280"))
    assert saved_steps(folder / "runs" / "loop", "own_loop") == [20, 40]
    assert float(longer["metrics"]["loss"].mean()) < float(said["metrics"]["loss"].mean())
    assert lmjax.load("runs/loop").generate("def ", max_tokens=3)[0].tokens


@pytest.mark.slow
def test_the_page_runs_as_it_stands(folder, compiled_once):
    names = run_script(folder, "page.py", "\n".join(BLOCKS))
    assert names["result"].summary["steps"] == 40 and names["small"].stages[-1].steps == 5
    repeated = lmjax.load("runs/repeat")
    assert [repeated.generate(f"{word}:", temperature=0)[0].text for word in ("json", "null")] == ["json", "null"]
    assert (folder / "runs" / "lion" / "summary.json").exists() and (
        folder / "runs" / "commas" / "report.html"
    ).exists()


@pytest.mark.slow
def test_the_notebook_runs_without_a_screen(folder, monkeypatch):
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")  # on one device, as a laptop has
    notebook = nbformat.read(ROOT / "docs" / "first_model.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are stripped"
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)
    assert "Trained LanguageModel" in shown and "image/png" in shown and "final: loss" in shown
    losses = [
        float(line.split()[1])
        for output in outputs
        for line in output.get("text", "").splitlines()
        if "runs/" in line[:5]
    ]
    assert len(losses) == 2 and losses[0] < losses[1]
