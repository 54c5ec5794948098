"""Beam search against an exhaustive one, against greedy decoding and against the reference library's stored beams."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.errors import UserError
from lmjax.generate.beam import BeamSettings, beam_search, search, searched
from lmjax.generate.decode import continued, generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.huggingface import read_model
from lmjax.model.families import model_of

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = ["a", "", "abba\nabab"]


class Ids:
    """A tokenizer of so many entries whose texts are the ids themselves; the last ends a text unless told."""

    def __init__(self, vocab_size, eos_id=None):
        self.vocab_size, self.eos_id = vocab_size, vocab_size - 1 if eos_id is None else eos_id

    def decode(self, ids):
        return " ".join(map(str, ids))


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def likelihoods(subject):
    """Of every text of up to 3 tokens over 5 entries, the last of which ends it: the sum of its log-probabilities."""
    sums, prompt = {}, [0, 1, 0]
    for length in range(3):
        for prefix in itertools.product(range(4), repeat=length):
            log_probs = log_softmax(subject.logits([*prompt, *prefix])[-1, :5])
            before = sums.pop(prefix, 0.0)
            sums |= {(*prefix, token): before + log_probs[token] for token in range(5)}
    assert len(sums) == 1 + 4 + 16 * 5
    return sums


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_enough_beams_find_every_text_in_the_order_of_an_exhaustive_search(subject, likelihoods, penalty):
    settings = BeamSettings(128, 3, penalty, n_best=128, early_stopping="never")
    found = searched(subject.model, subject.params, Ids(5), [[0, 1, 0]], settings)[0]
    expected = sorted(((total / len(ids) ** penalty, ids) for ids, total in likelihoods.items()), reverse=True)
    assert [tuple(text.tokens) for text in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([text.score for text in found], [score for score, _ in expected], atol=1e-4)
    np.testing.assert_allclose(
        [sum(text.log_probs) for text in found], [likelihoods[ids] for _, ids in expected], atol=1e-4
    )
    assert {text.finish_reason for text in found if text.tokens[-1] == 4} == {"eos"}
    assert {text.finish_reason for text in found if text.tokens[-1] != 4} == {"length"}


def test_two_beams_find_a_likelier_text_than_greedy_decoding(subject, likelihoods):
    """The likeliest first token does not begin the likeliest text."""
    one, several = (
        searched(subject.model, subject.params, Ids(5), [[0, 1, 0]], BeamSettings(beams, 3, 0.0))[0][0]
        for beams in (1, 8)
    )
    best = max(likelihoods, key=likelihoods.get)
    assert tuple(several.tokens) == best and tuple(one.tokens) != best and several.score > one.score


def test_one_beam_is_greedy_decoding(subject):
    found = beam_search(subject.model, subject.params, subject.tokenizer, PROMPTS, BeamSettings(1, 40))
    greedy = generate(subject.model, subject.params, subject.tokenizer, PROMPTS, SamplingSettings(40, 0.0))
    for texts, expected in zip(found, greedy, strict=True):
        assert len(texts) == 1 and texts[0].tokens == expected.tokens and texts[0].text == expected.text
        assert texts[0].finish_reason == expected.finish_reason
        np.testing.assert_allclose(texts[0].log_probs, expected.log_probs, atol=1e-5)
        assert texts[0].score == pytest.approx(np.mean(expected.log_probs), abs=1e-5)


def test_every_text_has_the_log_probabilities_of_a_full_forward_pass(subject):
    """The cache of each beam is that of its own text."""
    settings = BeamSettings(4, 40, n_best=4, early_stopping="never")
    found = beam_search(subject.model, subject.params, subject.tokenizer, PROMPTS, settings)
    for prompt, texts in zip(PROMPTS, found, strict=True):
        assert len({tuple(text.tokens) for text in texts}) == 4
        for text in texts:
            log_probs = log_softmax(subject.step_logits(prompt, text.tokens))
            expected = log_probs[np.arange(len(text.tokens)), text.tokens]
            np.testing.assert_allclose(text.log_probs, expected, atol=1e-4)
            assert text.score == pytest.approx(expected.sum() / len(expected), abs=1e-4)


def test_a_prompt_s_beams_do_not_depend_on_the_other_prompts_or_their_lengths(subject):
    settings = BeamSettings(4, 40, n_best=2)
    together = beam_search(subject.model, subject.params, subject.tokenizer, PROMPTS, settings)
    others = beam_search(subject.model, subject.params, subject.tokenizer, ["abba\nabab", "ab" * 50, "a"], settings)
    assert [t.tokens for t in others[0]] == [t.tokens for t in together[2]]
    assert [t.tokens for t in others[2]] == [t.tokens for t in together[0]]
    assert {(len(t.tokens), t.finish_reason, t.context_full) for t in others[1]} == {(28, "length", True)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A function from a golden file's name to that tiny model of the reference library and its parameters."""

    def load(name):
        folder = tmp_path_factory.mktemp(name)
        with np.load(GOLDEN / f"hf_{name}.npz", allow_pickle=False) as file:
            (folder / "config.json").write_text(str(file["config"]))
            tensors = {key.removeprefix("tensor/"): file[key] for key in file if key.startswith("tensor/")}
        save_file(tensors, folder / "model.safetensors")
        found = read_model(folder)
        return model_of(found.settings), found.params

    return load


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_hypotheses_are_the_reference_library_s(stored, name):
    """T5 reads the prompts as its inputs; the keys and values of these stay where they are when beams change places."""
    golden = json.loads((GOLDEN / "beams.json").read_text())
    (model, params), ends = stored(name), golden[name]["ends"]
    tokenizer = Ids(model.settings.vocab_size, ends[0])
    sizes, seen = search._cache_size(), set()
    for case in golden[name]["cases"]:
        options = BeamSettings(**case["options"], ends=tuple(ends[1:]))
        found = searched(model, params, tokenizer, golden["prompts"], options)
        for texts, expected in zip(found, case["hypotheses"], strict=True):
            assert [text.tokens for text in texts] == [text["tokens"] for text in expected]
            np.testing.assert_allclose([t.score for t in texts], [t["score"] for t in expected], atol=1e-4)
        seen.add(str(case["hypotheses"]))
    assert len(seen) == 7  # options that change nothing would show nothing
    assert search._cache_size() - sizes == 3  # one program for each way of stopping, whatever the penalty


def test_an_encoder_decoder_writes_the_likeliest_tokens_for_its_inputs(stored):
    """The text is what it writes, without the inputs; one beam, and drawing at temperature 0, agree with `logits`."""
    (model, params), inputs = stored("t5"), [[7, 3], [11, 40, 5, 2], [9, 9, 1]]
    tokenizer = Ids(61, 59)
    greedy = continued(model, params, tokenizer, inputs, SamplingSettings(max_tokens=6, temperature=0))
    searches = searched(model, params, tokenizer, inputs, BeamSettings(1, 6))
    logits_of = jax.jit(model.logits)
    for row, completion, (best,) in zip(inputs, greedy, searches, strict=True):
        written = completion.tokens
        assert best.tokens == written and completion.text == best.text
        assert completion.text == tokenizer.decode(written)
        assert completion.finish_reason == ("eos" if written[-1] == 59 else "length")
        assert written[-1] == 59 or len(written) == 6
        columns = {"tokens": np.zeros((1, 6), np.int32), "inputs": np.zeros((1, 4), np.int32)}
        columns["tokens"][0, 1 : len(written)] = written[:-1]  # after T5's start token, 0
        columns["inputs"][0, : len(row)] = row
        batch = columns | {
            "positions": np.arange(6, dtype=np.int32)[None],
            "segments": (np.arange(6) < len(written)).astype(np.int32)[None],
            "input_positions": np.arange(4, dtype=np.int32)[None],
            "input_segments": (np.arange(4) < len(row)).astype(np.int32)[None],
        }
        log_probs = log_softmax(np.asarray(logits_of(params, batch), np.float64)[0])[: len(written)]
        assert log_probs.argmax(axis=1).tolist() == written
        np.testing.assert_allclose(completion.log_probs, log_probs.max(axis=1), atol=1e-4)
    assert {completion.finish_reason for completion in greedy} == {"eos", "length"}
    assert len({tuple(completion.tokens) for completion in greedy}) == 3
    with pytest.raises(UserError, match="beyond_context = 'slide': expected 'stop' for an encoder-decoder"):
        continued(model, params, tokenizer, inputs, SamplingSettings(beyond_context="slide"))


def test_options_that_no_search_has_are_errors():
    for options, words in (
        ({"beams": 0}, "beams = 0: expected a number above 0"),
        ({"beams": 2, "n_best": 3}, "n_best = 3: expected 1 to beams = 2"),
        ({"length_penalty": 11.0}, "length_penalty = 11.0: expected a power from -10 to 10"),
        ({"early_stopping": "soon"}, "early_stopping = 'soon'"),
    ):
        with pytest.raises(UserError, match=words):
            BeamSettings(**options)


def test_a_prompt_that_fills_the_context_is_an_error(subject):
    with pytest.raises(UserError, match=r"prompt of 128 tokens.*context of 128"):
        beam_search(subject.model, subject.params, subject.tokenizer, ["ab" * 64], BeamSettings(2))
