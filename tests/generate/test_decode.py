"""Generation against full forward passes, and where and why a completion ends."""

import io

import jax
import numpy as np
import pytest
import sentencepiece

from lmjax.errors import UserError
from lmjax.generate.decode import STOP_CHECK, advance, continuation, generate, start, token_text
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.model.stack import unstack_layers
from lmjax.settings import ComputeSettings
from lmjax.tokenizers.sentencepiece import SentencePieceTokenizer

PROMPTS = ["a", "", "abba\nabab"]  # ragged, and one empty
GREEDY = {"temperature": 0, "top": 3}
DRAWN = {"temperature": 0.7}


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def complete(subject):
    """`generate` on the tiny model; 40 tokens unless told."""

    def complete(prompts=PROMPTS, tokenizer=None, max_tokens=40, **settings):
        settings = SamplingSettings(max_tokens=max_tokens, **settings)
        return generate(subject.model, subject.params, tokenizer or subject.tokenizer, prompts, settings)

    return complete


@pytest.fixture(scope="module")
def greedy(complete):
    return complete(**GREEDY)


@pytest.fixture(scope="module")
def drawn(complete):
    return complete(**DRAWN, seed=3)


def test_greedy_tokens_are_the_most_likely_of_a_full_forward_pass(subject, greedy):
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        logits = subject.step_logits(prompt, completion.tokens)
        chosen = logits[np.arange(len(logits)), completion.tokens]
        assert (chosen >= logits.max(-1) - 1e-4).all()
    assert len({completion.text for completion in greedy}) == 3


def test_the_samplers_log_probabilities_are_those_of_a_full_forward_pass_under_its_temperature(subject, greedy, drawn):
    for completions, temperature in ((greedy, 1.0), (drawn, 0.7)):
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            expected = log_softmax(subject.step_logits(prompt, completion.tokens) / temperature)
            chosen = expected[np.arange(len(expected)), completion.tokens]
            np.testing.assert_allclose(completion.log_probs, chosen, atol=1e-4)


def test_alternatives_are_the_most_likely_tokens_of_each_step_with_their_probabilities(subject, greedy):
    for prompt, completion in zip(PROMPTS, greedy, strict=True):
        probabilities = np.exp(log_softmax(subject.step_logits(prompt, completion.tokens)))
        assert len(completion.alternatives) == len(completion.tokens)
        for shares, pairs in zip(probabilities, completion.alternatives, strict=True):
            np.testing.assert_allclose([share for _, share in pairs], np.sort(shares)[::-1][:3], atol=1e-5)
            texts = [token_text(subject.tokenizer, token) for token in np.argsort(-shares)[:3]]
            assert [text for text, _ in pairs] == texts or np.diff(np.sort(shares)[-4:]).min() < 1e-5


def test_more_alternatives_than_entries_are_all_entries_and_add_up_to_one(complete, subject):
    completion = complete(["a"], max_tokens=2, temperature=0, top=50)[0]
    for pairs in completion.alternatives:
        assert len(pairs) == subject.tokenizer.vocab_size
        assert sum(share for _, share in pairs) == pytest.approx(1, abs=1e-5)


def test_a_repetition_penalty_is_the_loop_over_seen_tokens(complete, subject):
    completion = complete(["abba\nabab"], max_tokens=12, temperature=0, repetition_penalty=1.7)[0]
    ids = subject.prompt_ids("abba\nabab")
    for token in completion.tokens:
        logits = subject.logits(ids)[-1]
        for seen in set(ids):
            logits[seen] = logits[seen] / 1.7 if logits[seen] > 0 else logits[seen] * 1.7
        assert logits[token] >= logits.max() - 1e-4
        ids.append(token)
    assert completion.tokens != complete(["abba\nabab"], max_tokens=12, temperature=0)[0].tokens


def test_top_k_and_top_p_leave_out_what_they_should_at_every_step(complete, subject):
    completions = complete(temperature=1.3, top_k=4, top_p=0.8)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        for logits, token in zip(subject.step_logits(prompt, completion.tokens), completion.tokens, strict=True):
            largest = np.sort(logits)[::-1][:4]
            shares = np.exp(log_softmax(largest / 1.3))
            last = largest[(np.cumsum(shares) - shares < 0.8 + 1e-4)].min()
            assert logits[token] >= last - 1e-4


def test_rows_of_the_table_beyond_the_tokenizer_are_never_drawn(complete, subject):
    completions = complete(max_tokens=60, temperature=50.0)  # nearly uniform: each row would be drawn
    tokens = [token for completion in completions for token in completion.tokens]
    assert max(tokens) < subject.tokenizer.vocab_size and len(set(tokens)) > 8


def test_a_row_does_not_depend_on_the_other_rows(complete, drawn):
    others = complete(["a", "bbbb", "ab" * 20], **DRAWN, seed=3)
    assert others[0].tokens == drawn[0].tokens
    wider = complete(["a", "", "ab" * 40], **DRAWN, seed=3)  # 80 tokens: every row is padded to the next size
    assert wider[0].tokens == drawn[0].tokens and wider[1].tokens == drawn[1].tokens
    np.testing.assert_allclose(wider[1].log_probs, drawn[1].log_probs, atol=1e-4)


def test_a_seed_repeats_itself_and_another_one_differs_and_equal_prompts_differ_by_row(complete, drawn):
    again, other = complete(**DRAWN, seed=3), complete(**DRAWN, seed=4)
    assert [c.tokens for c in again] == [c.tokens for c in drawn]
    assert all(a.tokens != b.tokens for a, b in zip(other, drawn, strict=True))
    same = complete(["a", "a", "a"], **DRAWN, seed=3)
    assert len({tuple(c.tokens) for c in same}) == 3


def test_unrolled_layers_give_the_tokens_of_scanned_ones(subject, drawn):
    model = LanguageModel(subject.model.settings, ComputeSettings(scan_layers=False))
    settings = SamplingSettings(max_tokens=40, **DRAWN, seed=3)
    found = generate(model, unstack_layers(subject.params), subject.tokenizer, PROMPTS, settings)
    assert [c.tokens for c in found] == [c.tokens for c in drawn]


def test_the_end_of_text_ends_a_row_and_is_not_in_its_text(complete, piece_tokenizer, greedy):
    free = greedy[2].tokens
    end = free[7]
    completion = complete(tokenizer=piece_tokenizer(eos_id=end), **GREEDY)[2]
    where = free.index(end)
    assert completion.tokens == free[: where + 1] and completion.finish_reason == "eos"
    assert len(completion.log_probs) == len(completion.alternatives) == where + 1
    assert completion.text == piece_tokenizer().decode(free[:where])


def two_new_tokens(tokenizer, completions, earliest=0):
    """(row, n, texts): tokens n and n + 1 are whole characters, and neither text occurs before token n."""
    for row, completion in enumerate(completions):
        pieces = [tokenizer.decode(completion.tokens[:n]) for n in range(len(completion.tokens) + 1)]
        for n in range(max(earliest, 1), len(pieces) - 2):
            first, second = pieces[n + 1][len(pieces[n]) :], pieces[n + 2][len(pieces[n + 1]) :]
            whole = "\ufffd" not in pieces[n][-1:] + first + second
            if whole and first and second and first not in pieces[n] and pieces[n + 2].count(first + second) == 1:
                return row, n, (pieces[n], first, second)
    raise AssertionError("no such tokens: choose another seed")


@pytest.fixture(scope="module")
def varied(complete):
    return complete(**DRAWN, seed=3, max_tokens=64)


def test_a_stop_string_that_crosses_tokens_ends_a_row_before_it(complete, subject, varied):
    """It is completed after the first look for it, so that the row has run on."""
    row, n, (before, first, second) = two_new_tokens(subject.tokenizer, varied, earliest=STOP_CHECK)
    completion = complete(**DRAWN, seed=3, max_tokens=64, stop=("never", first + second))[row]
    assert completion.finish_reason == "stop" and completion.text == before
    assert completion.tokens == varied[row].tokens[: n + 2] and len(completion.log_probs) == n + 2


def test_the_stop_string_that_is_completed_first_ends_the_row(complete, subject, varied):
    """Of two that overlap, the one that begins later may be complete earlier, and streaming has stopped there."""
    row, n, (before, first, second) = two_new_tokens(subject.tokenizer, varied)
    completion = complete(**DRAWN, seed=3, max_tokens=64, stop=(before[-1] + first + second, first))[row]
    assert completion.tokens == varied[row].tokens[: n + 1] and completion.text == before


def test_a_row_ends_where_the_context_ends(complete):
    prompts = ["ab" * 50, "a", "ab" * 63 + "a"]  # 100, 1 and 127 tokens of a context of 128
    completions = complete(prompts, max_tokens=60, **DRAWN, seed=0)
    lengths = [len(c.tokens) for c in completions if c.finish_reason == "length"]
    assert lengths == [28, 60, 1]


def test_a_prompt_that_fills_the_context_is_an_error_that_names_both(complete):
    with pytest.raises(UserError, match=r"prompt of 128 tokens.*context of 128"):
        complete(["a", "ab" * 64], **DRAWN)


def test_no_prompts_give_no_completions(complete):
    assert complete([]) == []


def test_seeds_stop_strings_and_lengths_share_a_compiled_program(complete, drawn):
    sizes = start._cache_size(), advance._cache_size()
    compiled = []
    listen = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        complete(["b", "ab", "a" * 60], **DRAWN, seed=9, max_tokens=64)
        complete(["bb", "aab", "a" * 5], **DRAWN, seed=10, max_tokens=1, stop=("x",))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == [] and (start._cache_size(), advance._cache_size()) == sizes


@pytest.fixture(scope="module")
def published():
    """A SentencePiece model as published ones are: a blank is put before the text, and dropped from its beginning."""
    model = io.BytesIO()
    text = ["the array is a list of the numbers", "a list is the array", "numbers of the list"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=24, minloglevel=2, num_threads=1
    )
    return SentencePieceTokenizer(model.getvalue())


def test_a_continuation_keeps_the_blank_that_a_tokenizer_drops_from_a_beginning(published):
    prompt, whole = published.encode("the array"), published.encode("the array is a list")
    assert whole[: len(prompt)] == prompt
    assert published.decode(whole[len(prompt) :]) == "is a list"  # the blank is lost when decoded alone
    assert continuation(published, prompt, whole[len(prompt) :]) == " is a list"


def test_a_token_is_shown_with_its_blank_and_half_a_character_by_its_number(published, subject):
    assert token_text(published, published.encode("a is")[-1]) in (" is", "is", "s")
    shown = {token_text(published, token) for token in range(3, published.vocab_size)}
    assert any(text.startswith(" ") for text in shown) and any(not text.startswith(" ") for text in shown)
    assert [token_text(subject.tokenizer, token) for token in (2, 5, 9, 12)] == [" the", "<5>", "\n", "<eos>"]
