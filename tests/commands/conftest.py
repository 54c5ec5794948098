"""A recipe file of a small run, a workdir of it, and what a command says of a mistake."""

import contextlib
import io
from pathlib import Path

import pytest

from lmjax.cli import main
from lmjax.settings import LogSettings
from tests.tiny import pretrain, text, write_recipe


@pytest.fixture(scope="session")
def spec(tmp_path_factory) -> str:
    """A recipe file of a small run."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "text.txt").write_text("the cat sat on the mat\nand ran to the sea\n" * 40)
    never = {"train__steps": 1000, "evaluation__every": 1000, "checkpoint__every": 1000, "log": LogSettings()}
    recipe = pretrain(text(folder / "text.txt", documents="line"), name="small", model__context=64, **never)
    return str(write_recipe(folder / "small.py", recipe))


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, spec) -> Path:
    """Where `lmjax run` has trained three steps."""
    folder = tmp_path_factory.mktemp("workdir")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        overrides = ["--train.steps", "3", "--evaluation.every", "3", "--log.no-tensorboard", "--log.every", "1"]
        assert main(["run", spec, "--workdir", str(folder), *overrides]) == 0
    assert said.getvalue().endswith(f"report: {folder / 'report.html'}\n")
    return folder


@pytest.fixture
def fails(capsys):
    """A function from words to the error that a command prints, which is one and has no traceback."""

    def call(*arguments: str) -> str:
        try:
            code = main(list(arguments))
        except SystemExit as leaving:
            code = leaving.code
        captured = capsys.readouterr()
        assert code == 2
        assert "Traceback" not in captured.err and captured.out == ""
        return captured.err

    return call
