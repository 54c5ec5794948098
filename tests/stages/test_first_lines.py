"""A run begins with where it is, on what, what it trains, on how much; then that it compiles, and how many hours."""

import re

import numpy as np
import pytest

from lmjax.runs.run import run
from lmjax.stages.first_lines import hours_line, model_line, saying_compiling, steps_line
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.running import on_devices, without_charts
from tests.tiny import model, pretrain, text


class Said(ProgressDisplay):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_model_is_told_with_its_exact_parameters():
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 2 * 2 * 16
    total = (1000 + 16) * 16 + layer + 2 * 16
    told = f"model: 1 layer of width 16, 1,000 entries, {total:,} parameters"
    assert model_line(model(vocab_size=1000), 16) == told
    assert steps_line(10, 8, 16, 1280) == "steps: 10 of 8 x 16 tokens, 1,280 tokens planned"


def test_hours_are_those_of_the_steps_that_are_left():
    values = {"tokens_per_second": 1000.0, "step_seconds": 2.0}
    told = hours_line(3700, 100, values)
    assert told == "hours: 2.00 (2 h) for the 3,600 steps that are left, by 1,000 tokens/s at step 100"


def test_each_shape_of_a_batch_is_compiled_once():
    display = Said()
    session = Session(StopRequest(), display)
    step = saying_compiling(lambda state, batch: state + batch["tokens"].size, session)
    state = 0
    for rows in (2, 2, 4, 2, 4):
        state = step(state, {"tokens": np.zeros((rows, 3))})
    assert state == 3 * (2 + 2 + 4 + 2 + 4)
    assert [line.split(" in ")[0] for line in display.lines] == ["compiling the step", "compiled", "compiled"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    on_devices(monkeypatch)
    without_charts(monkeypatch)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nand ran to the sea\n" * 40)
    return pretrain(text(tmp_path / "text.txt"), reasons=("steps: 4, because it is a test",), train__steps=4)


def test_a_run_says_them_in_order_and_a_finished_one_none_of_them(recipe, tmp_path, capsys):
    run(recipe, tmp_path / "run")
    said = capsys.readouterr().out
    tokens = 42 * 40 + 1
    lines = (
        *(rf"workdir: {tmp_path}/run", r"devices: 8 x cpu", r"steps: 4, because it is a test"),
        rf"text\.txt: {tokens:,} tokens, 512 planned, 0\.\d+ epochs",
        r"model: 1 layer of width 16, 257 entries, [\d,]+ parameters",
        r"steps: 4 of 8 x 16 tokens, 512 tokens planned",
        *(r"compiling the step", r"compiled in [\d.]+ m?i?n? ?s?"),
    )
    places = [re.search(rf"^{line}", said, re.M).start() for line in lines]
    assert places == sorted(places)
    assert len(re.findall(r"^hours: .* for the [123] steps that are left, by [\d,]+ tokens/s at step", said, re.M)) == 1
    run(recipe, tmp_path / "run")
    assert capsys.readouterr().out.startswith(f"{tmp_path}/run is done.\n")


def test_a_process_that_is_not_the_first_says_nothing(recipe, tmp_path, capsys, monkeypatch):
    answers = iter([False])  # to the display's question; all else is done by this process, which is the only one
    monkeypatch.setattr("lmjax.runs.run.processes.is_first", lambda: next(answers, True))
    run(recipe, tmp_path / "run", report=False)
    assert next(answers, None) is None and capsys.readouterr().out == ""
