"""The plot of accuracy over shots: what each panel shows."""

import matplotlib.image
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.report.shots import Mark, drawn, write_shots

MARKS = [
    *(Mark("piqa", "accuracy", shots, 0.5 + shots / 100, 0.02, 0.5) for shots in (8, 0, 1)),
    Mark("piqa", "accuracy", 0, 0.7, 0.02, trained=True),
    Mark("gsm8k", "exact_match", 0, 0.1, float("nan")),
]


def test_a_panel_shows_its_set_by_shots_with_errors_and_what_is_compared():
    piqa, gsm8k = drawn(MARKS).axes
    (bars,) = piqa.containers
    line, _, (errors,) = bars.lines
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [0.5, 0.51, 0.58])
    np.testing.assert_allclose([np.ptp(ends[:, 1]) for ends in errors.get_segments()], 0.04)
    assert [label.get_text() for label in piqa.get_xticklabels()] == ["0", "1", "8"]
    assert (piqa.get_title(), piqa.get_ylabel()) == ("piqa", "accuracy")
    levels = {line.get_label(): line.get_ydata()[0] for line in piqa.lines}
    assert levels["fine-tuned"] == 0.7 and levels["guessing"] == 0.5
    assert [line.get_label() for line in gsm8k.lines if line.get_label() in ("fine-tuned", "guessing")] == []


def test_panels_without_a_set_are_not_shown():
    figure = drawn([Mark(f"set{number}", "accuracy", 0, 0.5, 0.1) for number in range(5)])
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False] * 3


def test_the_file_is_a_png(tmp_path):
    write_shots(tmp_path / "shots.png", MARKS)
    height, width = matplotlib.image.imread(tmp_path / "shots.png").shape[:2]
    assert (width, height) == (int(2 * 2.9 * 90), int((2.5 + 0.35) * 90))
    with pytest.raises(UserError, match=r"^--plot .*none/shots.png: cannot be written"):
        write_shots(tmp_path / "none" / "shots.png", MARKS)


def test_one_panel_is_wide_enough_for_the_legend():
    figure = drawn([mark for mark in MARKS if mark.task == "piqa"])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.texts) == 3
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.width
