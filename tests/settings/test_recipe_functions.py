"""A recipe's function takes arguments: from Python by name, from a command as options, each checked by its type."""

import pytest

from lmjax.errors import ArgumentError, UserError
from lmjax.settings.recipe_files import load_recipe
from lmjax.settings.recipe_functions import recipe_function

RECIPE = """
from typing import Literal
from lmjax.errors import ArgumentError
from lmjax.settings import Pretrain, TrainSettings

def recipe(size: Literal["s", "l"] = "s", *, files: tuple[str, ...], steps: int = 5, skip_bad: bool = False):
    if "absent" in files:
        raise ArgumentError("--files absent: no such file")
    return Pretrain(name=f"{size}-{len(files)}-{skip_bad}", train=TrainSettings(steps=steps))
"""


@pytest.fixture
def spec(tmp_path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return str(path)


def test_arguments_are_given_by_name(spec):
    made = load_recipe(f"{spec}:l", files=("a", "b"), steps=7, skip_bad=True)
    assert (made.name, made.train.steps) == ("l-2-True", 7)
    assert load_recipe(spec, files=("a",)).name == "s-1-False"


def test_words_are_arguments_or_set_fields(spec):
    function = recipe_function(spec)
    words = ["--files", "a", "b", "--train.seed", "3", "--skip-bad", "--steps=1e2", "--data.train.0.path", "F"]
    arguments, fields = function.from_words(words)
    assert arguments == {"files": ("a", "b"), "skip_bad": True, "steps": 100}
    assert fields == ["--train.seed", "3", "--data.train.0.path", "F"]
    dashed = ["--files", "a", "--evaluation.prompts=-x", "b"]
    assert function.from_words(dashed)[1] == ["--evaluation.prompts=-x", "b"]
    plain = ["anything", "--x"]
    assert recipe_function("quickstart").from_words(plain) == ({}, plain), "a recipe without arguments reads none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"mine.py: --files is missing. Expected a tuple, each entry a string\.$"),
        ({"files": "a"}, r"files = 'a': expected a tuple, each entry a string"),
        ({"files": ("a",), "stesp": 3}, r"no argument 'stesp'; did you mean 'steps'\?"),
        ({"files": ("a",), "steps": 2.5}, r"steps = 2.5: expected a whole number"),
        ({"files": ("absent",)}, r"^--files absent: no such file$"),
    ],
)
def test_wrong_arguments_are_named_and_no_line_of_the_file(spec, arguments, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        load_recipe(spec, **arguments)
    assert "mine.py:6" not in str(caught.value) and "mine.py:8" not in str(caught.value)


def test_a_field_that_an_argument_sets_wrong_is_named_with_its_line(spec):
    with pytest.raises(UserError, match=r"mine.py:9: train.steps = 0: expected a number above 0"):
        load_recipe(spec, files=("a",), steps=0)


def test_an_option_that_is_neither_argument_nor_field_is_answered_with_the_nearest(spec):
    with pytest.raises(ArgumentError, match=r"^--file: no such option; did you mean '--files'\?$"):
        recipe_function(spec).from_words(["--file", "a"])
    assert recipe_function(spec).from_words(["--name", "x", "--no-epochs"])[1] == ["--name", "x", "--no-epochs"]


def test_a_recipe_without_arguments_says_that_it_has_none():
    with pytest.raises(ArgumentError, match="quickstart: no argument 'data'; it has none"):
        load_recipe("quickstart", data=("a",))
