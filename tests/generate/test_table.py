"""The table of `lmjax generate --top K`, at every width of the terminal."""

import io
import math
import re

import pytest
from rich.console import Console

from lmjax.generate.table import print_alternatives

TEXTS = [" the", "\n", "it's", "<eos>"]
SHARES = [0.5012, 0.0004, 0.25, 1.0]
ALTERNATIVES = [
    [(" the", 0.5012), (" a", 0.25), ("日本", 0.125), ("<200>", 0.06), ("x" * 30, 0.0312)],
    [("[red]", 0.9), ("\n", 0.0004), ("a", 0.0003), ("b", 0.0002), ("c", 0.0001)],
    [("it's", 0.25), ("q", 0.24), ("r", 0.23), ("s", 0.22), ("t", 0.01)],
    [("<eos>", 1.0), ("u", 0.0), ("v", 0.0), ("w", 0.0), ("y", 0.0)],
]


def printed(width):
    out = io.StringIO()
    print_alternatives(TEXTS, [math.log(s) for s in SHARES], ALTERNATIVES, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [200, 80, 60])
def test_every_token_and_percentage_is_there_whole_at_every_width(width):
    text = printed(width)
    assert max(map(len, text.splitlines())) <= width
    for pairs in ALTERNATIVES:
        for token, share in pairs:
            assert f"{repr(token)[1:-1].replace(' ', '␣')} {share:.1%}" in text
    for share in SHARES:
        assert re.search(rf"(?<![\d.]){share:.1%}", text)


@pytest.mark.parametrize("width", [200, 60])
def test_a_star_marks_the_token_among_its_alternatives(width):
    assert re.findall(r"([^\s│]+) [\d.]+% \*", printed(width)) == ["␣the", r"\n", "it's", "<eos>"]


def test_alternatives_stand_side_by_side_where_there_is_room_and_else_below_each_other():
    assert "#5" in printed(200) and "most likely" not in printed(200)
    assert "#5" not in printed(60) and "most likely" in printed(60)
    assert len([line for line in printed(200).splitlines() if "%" in line]) == 4


def test_nothing_is_lost_on_a_terminal_narrower_than_a_token():
    kept = re.sub(r"[\s│┃]", "", printed(24))
    assert kept.count("x") >= 30 and "3.1%" in kept
    assert "…" not in kept
