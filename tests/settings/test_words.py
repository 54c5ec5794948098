"""Words of a command become values of a declared type, and what is none is answered with the form that works."""

from typing import Annotated, Literal

import pytest

from lmjax.errors import UserError
from lmjax.fields import above
from lmjax.settings.words import Option, is_option, options_of, value_of

PAIRS = tuple[tuple[str, str], ...]


@pytest.mark.parametrize(
    ("kind", "words", "value"),
    [
        (int, ["12"], 12),
        (int, ["1e3"], 1000),
        (int, ["-1"], -1),
        (int, ["1_000"], 1000),
        (int | None, ["none"], None),
        (int | None, ["None"], None),
        (int | None, ["3"], 3),
        (float, ["3e-4"], 3e-4),
        (float, ["7"], 7.0),
        (bool, [], True),
        (bool, ["false"], False),
        (bool, ["True"], True),
        (str, ["none"], "none"),
        (str, [""], ""),
        (Literal["a", "b"] | None, ["b"], "b"),
        (tuple[str, ...], ["A cat", "B"], ("A cat", "B")),
        (tuple[str, ...], [], ()),
        (tuple[int, int] | None, ["1", "2"], (1, 2)),
        (tuple[int, int] | None, ["None"], None),
        (PAIRS, ["prompt", "q", "answer", "a"], (("prompt", "q"), ("answer", "a"))),
    ],
)
def test_words_are_read_by_the_declared_type(kind, words, value):
    read = value_of(kind, Option("--x", tuple(words)))
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (int, ["five"], "--x five: expected a whole number"),
        (int, ["1.5"], "--x 1.5: expected a whole number"),
        (int, ["1e400"], "--x 1e400: expected a whole number"),
        (int, [], "--x: no value: expected a whole number; give it behind the option"),
        (int, ["1", "2"], "--x 1 2: expected a whole number; give one value"),
        (bool, ["maybe"], "--x maybe: expected true or false"),
        (Literal["float32", "bfloat16"], ["bf16"], "--x bf16: expected 'float32' or 'bfloat16'; did you mean"),
        (tuple[int, int] | None, ["1"], "--x 1: expected a tuple of 2: a whole number, a whole number or None; give 2"),
        (PAIRS, ["a"], "--x a: expected words, a tuple"),
        (dict, ["a"], "--x a: expected an object; it cannot be set on the command line"),
    ],
)
def test_words_that_are_no_value_are_answered_with_what_is(kind, words, message):
    with pytest.raises(UserError) as caught:
        value_of(kind, Option("--x", tuple(words)))
    assert str(caught.value).startswith(message)


def test_words_are_cut_into_options_with_what_follows_them():
    words = ["--a.b-c", "1", "2", "--d=x=y", "--no-e", "-f", "-1.5"]
    options = options_of(words)
    assert options == [
        Option("--a.b-c", ("1", "2")),
        Option("--d", ("x=y",)),
        Option("--no-e", ()),
        Option("-f", ("-1.5",)),
    ]
    assert options[0].path == ["a", "b_c"]
    assert not is_option("-1") and not is_option("-.5") and is_option("-1x"[:1] + "x")
    with pytest.raises(UserError, match=r"^'stray': expected an option"):
        options_of(["stray", "--a"])


def test_a_long_word_is_not_repeated():
    with pytest.raises(UserError) as caught:
        value_of(int, Option("--x", ("9" * 5_000 + "x",)))
    assert len(str(caught.value)) < 400


def test_bounds_are_left_to_the_settings():
    assert value_of(Annotated[int, above(0)].__origin__, Option("--x", ("-3",))) == -3
