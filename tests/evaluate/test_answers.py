"""What a model answers: where a choice begins, what its scores are, and which way to choose takes which choice."""

import math

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.answers import Answer, Choice, Examiner
from lmjax.evaluate.likelihood import TokenProbs
from lmjax.evaluate.means import mean_of
from lmjax.evaluate.questions import Question
from lmjax.tokenizers.byte import ByteTokenizer


class Pairs(ByteTokenizer):
    """Bytes, but two blanks, and a colon with the blank after it, are one token each."""

    def encode_batch(self, texts):
        return [np.array([*text.replace("  ", "\x01").replace(": ", "\x02").encode()], np.int32) for text in texts]


class Likelihood:
    """Says -1 for each token, -0.5 for an "x", and finds the likeliest token to be "x". Remembers what it has read."""

    def __init__(self):
        self.read = []

    def after(self, groups):
        for endings in groups:
            self.read += [ids.tolist() for ids, _ in endings]
            owns = [np.where(ids[-asked:] == ord("x"), -0.5, -1.0) for ids, asked in endings]
            yield [TokenProbs(own, np.full((len(own), 1), ord("x")), own[:, None]) for own in owns]


def answer(question, prompts=None, context=64, tokenizer=None):
    reader = Likelihood()
    examiner = Examiner(reader, tokenizer or ByteTokenizer(), context)
    (found,) = examiner.answers([(question, prompts or [question.context])])
    return found, reader.read


def test_the_tokens_of_a_choice_are_scored_and_no_others():
    found, read = answer(Question("ab", (" xx", " c"), 0))
    assert read == [[256, *b"ab xx"], [256, *b"ab c"]]
    assert found.choices == (Choice(-2.0, 3, 3, False, True), Choice(-2.0, 2, 2, False, False))
    assert found.tie


def test_prompt_and_choice_are_encoded_together_and_cut_where_the_prompt_alone_ends():
    found, read = answer(Question("a:", (" x",), 0), tokenizer=Pairs())
    assert read == [[256, ord("a"), 2, ord("x")]]
    (choice,) = found.choices
    assert (choice.tokens, choice.bytes, choice.log_prob) == (1, 2, -0.5)  # as many tokens as the whole has more
    with pytest.raises(UserError, match="has 0 tokens of its own: expected 1 to the context of 64"):
        answer(Question("a ", (" ",), 0), tokenizer=Pairs())


@pytest.mark.parametrize("before", [(), (258,)])
def test_a_published_tokenizer_has_before_a_prompt_what_it_adds_itself_and_nothing_else(before):
    class Published(ByteTokenizer):
        kind = "huggingface"

        def encode_with_specials(self, text):
            return [*before, *text.encode()]

    _, read = answer(Question("ab", (" x",), 0), tokenizer=Published())
    assert read == [[*before, *b"ab x"]]


def test_each_way_to_choose_takes_the_choice_that_it_should():
    sizes = ((-3.0, 1, 9), (-4.0, 2, 4), (-5.0, 4, 20), (-6.0, 3, 60))  # nats, tokens, bytes
    choices = tuple(Choice(*own, True, True) for own in sizes)
    bare = (-1.0, -6.0, -6.0, -6.0)
    takes = {"accuracy": 0, "per_token": 2, "per_byte": 3, "unconditional": 1}
    for gold in range(4):
        rights = Answer(Question("", ("a", "b", "c", "d"), gold), choices, bare, 0, False).rights()
        assert rights == {way: float(taken == gold) for way, taken in takes.items()}
    assert "unconditional" not in Answer(Question("", ("a",), 0), choices[:1], (), 0, False).rights()


def test_the_unconditional_probability_is_that_after_the_bare_context():
    found, read = answer(Question("ab:", (" x", " cc"), 1, bare="B:"))
    assert read == [[256, *b"ab: x"], [256, *b"ab: cc"], [256, *b"B: x"], [256, *b"B: cc"]]
    assert found.bare == (-1.5, -3.0)


def test_a_common_end_alone_is_scored_after_what_precedes_it_in_each_choice():
    found, read = answer(Question("ab", (" x cc", " yy cc"), 1, end=" cc"))
    assert read == [[256, *b"ab x cc"], [256, *b"ab yy cc"]]
    assert found.choices == (Choice(-3.0, 3, 3, False, False), Choice(-3.0, 3, 3, False, False))
    found, _ = answer(Question("", ("xx", "cx"), 0, end="x"))  # without a context a candidate begins the text
    assert found.choices == (Choice(-0.5, 1, 1, True, True, True), Choice(-0.5, 1, 1, True, True, True))


def test_with_the_filter_a_word_is_right_where_the_likeliest_token_that_is_no_stop_word_is_its_own():
    class Ranked(Likelihood):
        def after(self, groups):
            for group in super().after(groups):
                rows = [(found.log_probs, np.tile([*map(ord, "txyz")], (len(found.log_probs), 1))) for found in group]
                yield [TokenProbs(log_probs, ranked, np.zeros(ranked.shape)) for log_probs, ranked in rows]

    def word(text, stop_words):
        examiner = Examiner(Ranked(), ByteTokenizer(), 64, [ord(stop) for stop in stop_words])
        (found,) = examiner.answers([(Question("a", (text,), 0), ["a"])])
        return found.word()["last_word"], found.word()["filtered"]

    assert word("tt", "") == word("tt", "z") == (1, 1)
    assert word("xx", "t") == word("zz", "txy") == (0, 1)
    assert word("tt", "t") == (1, 0)
    assert word("xx", "") == word("xt", "t") == word("yy", "t") == (0, 0)


def test_of_equal_choices_the_first_is_taken():
    equal = (Choice(-2.0, 1, 1, True, True), Choice(-2.0, 1, 1, True, True))
    assert [Answer(Question("", ("a", "b"), gold), equal, (), 0, False).rights()["accuracy"] for gold in (0, 1)] == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("context", "shots", "cut"),
    [(10, 2, False), (9, 1, False), (6, 1, False), (5, 0, False), (3, 0, False), (2, 0, True)],
)
def test_a_prompt_beyond_the_context_loses_shots_and_then_its_beginning(context, shots, cut):
    """With the end of text before it and the choice behind it, a prompt has 11, 7 or 4 tokens; the last is not read."""
    found, read = answer(Question("e", (" x",), 0), ["a\n\nbc\n\ne", "c\n\ne", "e"], context)
    assert (found.shots, found.cut) == (shots, cut)
    assert len(read[0]) == min({2: 11, 1: 7, 0: 4}[shots], context + 1)
    assert read[0][-2:] == [*b" x"] and found.choices[0].tokens == 2


def test_a_choice_beyond_the_context_is_refused():
    with pytest.raises(UserError, match="has 5 tokens of its own: expected 1 to the context of 4"):
        answer(Question("e", (" x", " four"), 0), context=4)


def test_a_last_word_is_right_where_all_its_tokens_are_the_likeliest():
    right, _ = answer(Question("a", ("xx",), 0))
    last, _ = answer(Question("a", (" x",), 0))
    wrong, _ = answer(Question("a", ("xa",), 0))
    assert [each.word() for each in (right, last, wrong)] == [
        {"last_word": 1.0, "last_token": 1.0, "filtered": 1.0},
        {"last_word": 0.0, "last_token": 1.0, "filtered": 0.0},
        {"last_word": 0.0, "last_token": 0.0, "filtered": 0.0},
    ]


def test_the_standard_error_is_that_of_a_mean():
    mean = mean_of([1.0, 0.0, 1.0, 1.0])
    assert mean.value == 0.75
    assert mean.error == pytest.approx(math.sqrt(0.75 * 0.25 * 4 / 3 / 4))
    assert math.isnan(mean_of([1.0]).error)
