"""What a reward function is given, what it may say, and what it does wrong, told to its user."""

import threading
import time

import jax
import numpy as np
import pytest

from lmjax.data.conversations import Record, Turn
from lmjax.errors import UserError
from lmjax.rl.reward_function import load_function, load_functions
from lmjax.settings import RewardSettings

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

import numpy as np
import jax.numpy as jnp

def none(p, r): return [None, 1.0]
def numbers_in_words(p, r): return ["1.0", "2.0"]
def column(p, r): return np.ones((len(r), 1))
def one(p, r): return [1.0]
def single(p, r): return 1.0
def mapping(p, r): return {"a": 1.0, "b": 2.0}
def huge(p, r): return [1e39, 0.0]
def whole(p, r): return [10**400, 0.0]
def complex_(p, r): return np.array([1j, 0.0])
def exits(p, r): raise SystemExit(3)
def elsewhere(p, r): return list(np.ones(2).reshape(3))
async def later(p, r): return [0.0, 0.0]

def truths(p, r): return [len(x) > 1 for x in r]
def generated(p, r): return (float(len(x)) for x in r)
def on_device(p, r): return jnp.array([len(x) for x in r], jnp.bfloat16)
def half(p, r): return np.array([0.5, 1.5], np.float16)
def scalars(p, r): return [np.float64(0.25), jnp.float32(2.0)]

def swapped(completions, prompts): return [10 * len(r) + len(p) for p, r in zip(prompts, completions)]
def library(completions, **kwargs):
    return [len(r) + len(p) + t for r, p, t in zip(completions, kwargs["prompts"], kwargs["truth"])]
def truth(p, r, truth): return [float(t) for t in truth]
def rest(p, r, **fields): return [len(fields["truth"]), fields["other"][1]]
def whole_records(p, r, records): return [record["truth"] for record in records]
def optional(p, r, absent=7.0): return [absent, absent]
def wanting(prompts, responses, absent): return [0.0, 0.0]

def opinion(p, r): return [None, 2.0]
def half_opinion(p, r): return [0.5, None]
def nan(p, r): return [float("nan"), 1.0]
def slow(p, r):
    import time
    time.sleep(30)
"""
RECORDS = [
    Record((Turn("user", "p"),), where="prompts.jsonl:4", fields={"prompt": "p", "truth": 3}),
    Record((Turn("user", "pp"),), where="prompts.jsonl:7", fields={"prompt": "pp", "truth": 5, "other": 2.0}),
]


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "scores.py"
    path.write_text(FUNCTIONS)
    return lambda name, timeout=None: load_function(f"{path}:{name}", "reward.source", timeout)


def test_a_number_for_each_response_is_taken(load):
    scores = load("right")(["p", "pp"], ["r", "rrr"])
    np.testing.assert_array_equal(scores, np.array([2, 5], np.float32))
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [("truths", [0, 1]), ("generated", [1, 3]), ("on_device", [1, 3]), ("half", [0.5, 1.5]), ("scalars", [0.25, 2])],
)
def test_numbers_of_any_kind_are_taken_also_within_a_step(load, name, expected):
    with jax.transfer_guard("disallow"):
        scores = load(name)(["p", "pp"], ["r", "rrr"])
    np.testing.assert_array_equal(scores, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "scores.py:words': expected one number per response, found 'good' for 'r' to the prompt of prompts"),
        ("ragged", r"scores.py:ragged': expected one number per response, found \[1.0\] .*; return a list of floats"),
        ("failing", r"scores.py:failing': .*scores\.py:12: KeyError: 'r'; the 2 responses to the prompts of "),
        ("infinite", r"score of a response is inf: .* give it one for 's' to the prompt of prompts\.jsonl:7, too"),
        ("none", r"returned None for 'r' to the prompt of prompts\.jsonl:4: expected a finite number; at least one"),
        ("nan", r"score of a response is nan: .* give it one for 'r' to the prompt of prompts\.jsonl:4"),
        ("numbers_in_words", "expected one number per response, found '1.0'"),
        ("column", r"expected 2 scores, one per response, got an array of shape \(2, 1\)"),
        ("one", r"expected 2 scores, one per response, got an array of shape \(1,\)"),
        ("single", "expected one number per response, found 1.0"),
        ("mapping", "expected one number per response, found {'a'"),
        ("huge", "score of a response is inf"),
        ("whole", "score of a response is inf"),
        ("complex_", "expected one number per response, found np.complex128"),
        ("exits", r"scores\.py:\d+: SystemExit: 3; the 2 responses to the prompts of prompts\.jsonl:4, prompts"),
        ("elsewhere", r"scores\.py:\d+: ValueError: cannot reshape"),
        (
            "wanting",
            "takes 'absent', a field that none of the 2 responses to the prompts of .* has; known: prompt, truth",
        ),
    ],
)
def test_anything_else_is_an_error_of_the_user(load, name, message):
    scores = load(name)
    with pytest.raises(UserError, match=message):
        scores(["p", "q"], ["r", "s"], RECORDS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_one", r"expected a function of \(prompts, responses\), found \(texts\)"),
        ("later", "expected a plain function, found an async one; write def"),
    ],
)
def test_a_function_of_another_form_is_refused_when_it_is_loaded(load, name, message):
    with pytest.raises(UserError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swapped", [11, 32]),  # by the names of its parameters, not their order
        ("library", [5, 10]),
        ("truth", [3, 5]),
        ("rest", [2, 2]),
        ("whole_records", [3, 5]),
        ("optional", [7, 7]),
    ],
)
def test_a_function_is_given_what_its_parameters_are_called(load, name, expected):
    assert load(name)(["p", "pp"], ["r", "rrr"], RECORDS).tolist() == expected


def test_several_functions_are_added_up_and_none_is_no_opinion(load, tmp_path):
    def of(*names):
        settings = RewardSettings(
            source=f"{tmp_path}/scores.py:{names[0]}", functions=tuple(f"{tmp_path}/scores.py:{n}" for n in names[1:])
        )
        return load_functions(settings.functions_by_field)

    texts = (["p", "pp"], ["r", "rrr"], RECORDS)
    assert of("right", "opinion", "half_opinion")(*texts).tolist() == [2.5, 7.0]
    assert of("opinion", "half_opinion")(*texts).tolist() == [0.5, 2.0]
    with pytest.raises(
        UserError, match=r"none of reward\.source, reward\.functions\[0\] returned a number for 'r' to the"
    ):
        of("opinion", "none")(*texts)
    with pytest.raises(UserError, match=r"reward\.functions\[0\] = .*scores\.py:nan': the score of a response is nan"):
        of("right", "nan")(*texts)


def test_a_call_that_takes_longer_than_the_timeout_is_an_error_at_once(load):
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"TimeoutError: it took longer than reward\.timeout = 0\.2 seconds; the 2 resp"
    ):
        load("slow", 0.2)(["p", "q"], ["r", "s"])
    assert time.monotonic() - began < 20
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "reward function")
    assert load("right", 60.0)(["p", "q"], ["r", "s"]).tolist() == [2, 2]
    with pytest.raises(UserError, match=r"scores\.py:12: KeyError"):
        load("failing", 60.0)(["p", "q"], ["r", "s"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "reward", "functions": ("a.py:f",)},
            "RewardSettings.source = 'reward': expected a function beside",
        ),
        (
            {"source": "a.py:f", "functions": ("b",)},
            r"RewardSettings\.functions\[0\] = 'b': expected a Python function",
        ),
        ({"source": "a.py:f", "timeout": 0.0}, "RewardSettings.timeout = 0.0: expected a number above 0"),
    ],
)
def test_functions_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RewardSettings(**settings)
