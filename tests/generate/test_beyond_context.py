"""What happens where the model's context is full: a row ends and says so, or reads its last half again."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate.chat import stream
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings

CONTEXT, KEPT = 128, 64  # of the tiny model; a row that slides reads its last half again


@pytest.fixture(scope="module")
def complete(subject):
    def complete(prompts, **settings):
        return generate(subject.model, subject.params, subject.tokenizer, prompts, SamplingSettings(**settings))

    return complete


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def windowed_log_probs(subject, prompt, tokens, temperature=1.0):
    """The log-probability of each of `tokens`, by full forward passes over the windows that a sliding row reads."""
    ids = [*subject.prompt_ids(prompt), *tokens]
    n, begin, out = len(subject.prompt_ids(prompt)), 0, []
    while n < len(ids):
        if n - begin == CONTEXT:
            begin = n - KEPT
        end = min(len(ids), begin + CONTEXT)
        shares = log_softmax(subject.logits(ids[begin:end]) / temperature)
        out += [shares[place - begin - 1, ids[place]] for place in range(n, end)]
        n = end
    return np.array(out)


def test_a_full_context_ends_a_row_and_the_completion_says_so(complete):
    full, short = complete(["ab" * 50, "a"], max_tokens=60, temperature=0.7)
    assert (len(full.tokens), full.finish_reason, full.context_full) == (28, "length", True)
    assert (len(short.tokens), short.finish_reason, short.context_full) == (60, "length", False)
    exact = complete(["ab" * 50], max_tokens=28, temperature=0.7)[0]
    assert exact.tokens == full.tokens and not exact.context_full


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_sliding_rows_draw_from_full_forward_passes_over_the_kept_windows(complete, subject, temperature):
    prompts = ["ab" * 50, "a", "ab" * 63 + "a"]  # 100, 1 and 127 tokens: each is full at another time
    given = {"max_tokens": 260, "temperature": temperature, "seed": 3, "top": 2}
    completions = complete(prompts, beyond_context="slide", **given)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.finish_reason == "length" and not completion.context_full
        assert len(completion.tokens) == len(completion.log_probs) == len(completion.alternatives) == 260
        expected = windowed_log_probs(subject, prompt, completion.tokens, temperature or 1.0)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)
        if temperature == 0:
            best = [max(share for _, share in step) for step in completion.alternatives]
            np.testing.assert_allclose(np.exp(completion.log_probs), best, atol=1e-5)
    alone = [complete([prompt], beyond_context="slide", **given)[0] for prompt in prompts[:1]]
    assert alone[0].tokens == completions[0].tokens  # a row slides when it is full, wherever the others are


def test_a_row_that_never_fills_the_context_is_the_same_under_both(complete):
    given = {"max_tokens": 60, "temperature": 0.7, "seed": 3}
    assert complete(["a"], **given) == complete(["a"], **given, beyond_context="slide")


def test_a_window_draws_with_keys_of_its_own(complete):
    """With those of the first window again, equal windows would repeat themselves for ever."""
    tokens = complete(["ab" * 50], max_tokens=300, temperature=50.0, seed=1, beyond_context="slide")[0].tokens
    first, second = tokens[28:92], tokens[92:156]
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 20  # of 64; about 5 by chance


def test_a_stop_string_ends_a_row_in_a_later_window_and_the_others_slide_on(complete):
    given = {"max_tokens": 200, "temperature": 0.7, "seed": 5, "beyond_context": "slide"}
    free = complete(["ab" * 50, "a"], **given)
    place = next(n for n in range(60, 150) if free[0].text[n : n + 3] not in free[0].text[: n + 2])
    stop = free[0].text[place : place + 3]
    ended, other = complete(["ab" * 50, "a"], **given, stop=(stop,))
    assert ended.finish_reason == "stop" and ended.text == free[0].text[: free[0].text.index(stop)]
    cut = free[1].text.find(stop)
    assert other.text == (free[1].text if cut < 0 else free[1].text[:cut])


def test_streaming_gives_the_sliding_completion(complete, subject):
    settings = SamplingSettings(max_tokens=150, temperature=0.7, seed=3, beyond_context="slide")
    whole = complete(["ab" * 50], max_tokens=150, temperature=0.7, seed=3, beyond_context="slide")[0]
    assert "".join(stream(subject.model, subject.params, subject.tokenizer, "ab" * 50, settings)) == whole.text


def test_a_prompt_longer_than_the_context_is_read_from_its_end_where_it_may_slide(complete):
    given = {"max_tokens": 8, "temperature": 0, "beyond_context": "slide"}
    assert complete(["ab" * 90], **given)[0].tokens == complete(["ab" * 32], **given)[0].tokens
    with pytest.raises(UserError, match=r"prompt of 180 tokens.*context of 128; shorten it, or .*'slide'"):
        complete(["ab" * 90], max_tokens=8)


def test_any_number_of_tokens_may_be_asked_for(complete):
    assert complete(["ab" * 50], max_tokens=999_999_999_999, temperature=0.7)[0].context_full


def test_tokens_that_end_a_text_end_a_row_and_are_not_in_its_text(complete, subject):
    free = complete(["abba\nabab"], max_tokens=40, temperature=0)[0].tokens
    end = free[7]
    completion = complete(["abba\nabab"], max_tokens=40, temperature=0, ends=(15, end))[0]
    where = free.index(end)
    assert completion.tokens == free[: where + 1] and completion.finish_reason == "eos"
    assert completion.text == subject.tokenizer.decode(free[:where])


def test_no_temperature_draws_what_no_token_is(complete, subject):
    for temperature in (1e-6, 1e6):
        tokens = complete(["a"], max_tokens=100, temperature=temperature)[0].tokens
        assert max(tokens) < subject.tokenizer.vocab_size
    for temperature in (1e30, 1e-30, float("inf"), float("nan")):
        with pytest.raises(UserError, match="temperature = "):
            complete(["a"], temperature=temperature)
