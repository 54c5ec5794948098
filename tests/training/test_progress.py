"""What the terminal shows: every number that matters, live or line by line, and samples letter by letter."""

import io
import re
import time

import pytest
from rich.console import Console

from lmjax.training import progress
from lmjax.training.progress import ProgressDisplay, describe

VALUES = {"loss": 2.34567, "tokens_per_second": 12345.6, "step_seconds": 0.0425}


class _Clock:
    """Seconds that pass only when told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _plain(**settings) -> tuple[ProgressDisplay, io.StringIO]:
    out = io.StringIO()
    return ProgressDisplay(console=Console(file=out, width=200, **settings)), out


def _live() -> tuple[ProgressDisplay, io.StringIO]:
    return _plain(force_terminal=True, color_system=None, _environ={"TERM": "xterm"})


def test_numbers_are_described_with_mfu_or_else_step_time():
    assert describe(VALUES) == "loss 2.3457  12,346 tokens/s  42 ms/step"
    assert describe(VALUES | {"mfu": 0.4567}) == "loss 2.3457  12,346 tokens/s  MFU 45.7%"
    assert describe({}) == ""


def test_skipped_steps_are_shown():
    assert describe(VALUES | {"skipped": 3.0}).endswith("3 steps skipped: not finite")
    assert "skipped" not in describe(VALUES | {"skipped": 0.0})


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(clock):
    display, out = _plain()
    display.start("tiny", steps=100, first=20)
    for step in range(21, 101):
        clock.now += 1.0
        display.update(step, VALUES)
    display.finish()
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [*(f"{step}/100" for step in range(21, 100, 10)), "100/100"]
    assert lines[0] == "tiny 21/100  loss 2.3457  12,346 tokens/s  42 ms/step  1:19 left"
    assert lines[-1] == "tiny 100/100  loss 2.3457  12,346 tokens/s  42 ms/step"


def test_on_a_terminal_a_bar_shows_steps_numbers_and_time_left():
    display, out = _live()
    display.start("tiny", steps=100, first=20)
    display.update(60, VALUES)
    display.finish()
    shown = out.getvalue()
    assert "tiny" in shown and "60/100" in shown and "loss 2.3457" in shown and "42 ms/step" in shown
    assert re.search(r"ms/step +(-:--:--|\d+:\d\d:\d\d)", shown), "the time left"
    assert "tiny 60/100  loss" not in shown, "no plain lines beside the bar"


@pytest.mark.parametrize("make", [_plain, _live])
def test_a_sample_cannot_inject_markup_emoji_or_terminal_codes(make):
    display, out = make()
    display.start("tiny", steps=2, first=0)
    display.say("a [bold]b[/bold] [link=http://x]c[/link] :heart: \x1b[31mred\x07 \r gone \x9b2J [/]")
    display.finish()
    line = next(line for line in out.getvalue().splitlines() if "gone" in line)
    assert "a [bold]b[/bold] [link=http://x]c[/link] :heart: \u241b[31mred\ufffd \u240d gone \ufffd2J [/]" in line


def test_the_lines_of_a_sample_stay_and_long_ones_are_not_cut():
    display, out = _plain()
    display.say("one\n\ttwo" + "x" * 500)
    assert out.getvalue() == "one\n        two" + "x" * 500 + "\n"


def test_a_terminal_that_cannot_show_a_letter_does_not_end_the_run():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    ProgressDisplay(console=console).say("caf\xe9 \ufffd")
    assert raw.getvalue() == b"caf? ?\n"


def test_a_silent_display_says_nothing(capsys):
    display = ProgressDisplay(silent=True)
    display.start("tiny", 2, 0)
    with display.counting("encoding") as count:
        count(1, 2)
    display.update(2, VALUES)
    display.say("hello")
    display.finish()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_counting_documents_shows_a_bar_that_goes_away_and_plain_lines_elsewhere(clock):
    display, out = _plain()
    with display.counting("encoding a[b].txt") as count:
        for done in range(0, 4000, 100):
            clock.now += 1.0
            count(done, 4000)
    assert out.getvalue().splitlines() == [
        f"encoding a[b].txt {done}/4,000 documents" for done in ("900", "1,900", "2,900", "3,900")
    ]


def test_counting_on_a_terminal_shows_how_many_of_how_many():
    display, out = _live()
    with display.counting("encoding a[b].txt") as count:
        count(3000, 4000)
    assert "encoding a[b].txt" in out.getvalue() and "3000/4000" in out.getvalue()


def test_what_cannot_be_counted_is_told_every_ten_seconds_without_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.05)
    display, out = _plain()
    with display.waiting("training"):
        time.sleep(0.2)
    assert set(out.getvalue().splitlines()) == {"training: 0 s"}
    display, out = _plain()
    with display.waiting("training"):
        pass
    assert out.getvalue() == ""
    live, shown = _live()
    with live.waiting("training"):
        time.sleep(0.2)
    assert "training" in shown.getvalue() and "0:00:00" in shown.getvalue()


def test_what_is_waited_for_beside_a_bar_is_shown_in_it():
    display, out = _live()
    display.start("tiny", steps=10, first=0)
    with display.waiting("compiling"):
        display._bar.refresh()
    display.finish()
    assert "compiling" in out.getvalue()
    assert "compiling" not in out.getvalue().splitlines()[-1]
