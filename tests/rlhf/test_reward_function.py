"""What a reward function does wrong, told to its user."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.rlhf.reward_function import load_function

FUNCTIONS = """
def right(prompts, responses):
    return [len(p) + len(r) for p, r in zip(prompts, responses)]

def words(prompts, responses):
    return ["good"] * len(responses)

def ragged(prompts, responses):
    return [[1.0], [1.0, 2.0]]

def failing(prompts, responses):
    return {}[responses[0]]

def of_one(texts):
    return [0.0]

def infinite(prompts, responses):
    return [0.0, float("inf")]
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "scores.py"
    path.write_text(FUNCTIONS)
    return lambda name: load_function(f"{path}:{name}", "reward.source")


def test_a_number_for_each_response_is_taken(load):
    scores = load("right")(["p", "pp"], ["r", "rrr"])
    np.testing.assert_array_equal(scores, np.array([2, 5], np.float32))
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "scores.py:words': expected one number per response: could not convert string to float: 'good'"),
        ("ragged", "scores.py:ragged': expected one number per response: .*; return a list of floats"),
        ("failing", r"scores.py:failing': .*scores\.py:12: KeyError: 'r'"),
        ("infinite", "score of a response is inf: expected a finite number; give it one for 's', too"),
    ],
)
def test_anything_else_is_an_error_of_the_user(load, name, message):
    scores = load(name)
    with pytest.raises(UserError, match=message):
        scores(["p", "q"], ["r", "s"])


def test_a_function_of_other_arguments_is_refused_when_it_is_loaded(load):
    with pytest.raises(UserError, match=r"expected a function of \(prompts, responses\), found \(texts\)"):
        load("of_one")
