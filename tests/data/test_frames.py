"""Texts in their frames, cut where they are too long, and in windows: the papers' examples, and independent loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.data.frames import Frame, decoder_frame, encoder_frame, fitting, framed, kept
from lmjax.data.windows import most_context, windows
from lmjax.errors import UserError
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

FRAME = Frame(101, 102, 103)
ROBES = ("are wearing colorful costumes.", "are doing karate moves on the floor.", "shake hands on their hips.")
ROBES += ("do a flip to the bag.",)
SMIRK = (
    "smiles and falls heavily.",
    "wears a bashful smile.",
    "kneels down behind her.",
    "gives him a playful glance.",
)


def pair(tokenizer, a, b, length=64, **cut):
    one, two = tokenizer.encode_batch([a, b])
    return framed(encoder_frame(tokenizer), one, two, length, **cut)


def test_the_figure_of_the_paper_has_eleven_pieces_where_playing_is_two():
    words = ["[UNK]", "[CLS]", "[SEP]", "my", "dog", "is", "cute", "he", "likes", "play", "##ing"]
    tokens, types = pair(wordpiece(words, lowercase=True), "my dog is cute", "he likes playing")
    assert [words[index] for index in tokens] == [
        *("[CLS]", "my", "dog", "is", "cute", "[SEP]", "he", "likes", "play", "##ing", "[SEP]")
    ]
    assert "".join(map(str, types)) == "00000011111"
    assert tokens.dtype == types.dtype == np.int32


@pytest.mark.data
def test_the_figure_of_the_paper_has_ten_pieces_with_the_published_vocabulary(shared_data):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    tokens, types = pair(tokenizer, "my dog is cute", "he likes playing")
    assert tokens.tolist() == [101, 2026, 3899, 2003, 10140, 102, 2002, 7777, 2652, 102]
    assert "".join(map(str, types)) == "0000001111"


@pytest.mark.data
def test_choices_have_the_lengths_and_the_beginning_of_the_published_example(shared_data):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    rows = [pair(tokenizer, "The people are in robes. They", ending)[0] for ending in ROBES]
    assert [len(row) for row in rows] == [15, 18, 16, 17]
    assert all(row[:9].tolist() == [101, 1996, 2111, 2024, 1999, 17925, 1012, 2027, 102] for row in rows)
    rows = [pair(tokenizer, "She smirks at someone and rides off. He", ending)[0] for ending in SMIRK]
    assert [len(row) for row in rows] == [18, 19, 19, 19]


def test_a_decoder_reads_start_delimiter_and_extract_behind_its_table():
    frame = decoder_frame(257)
    assert (frame.begin, frame.between, frame.end) == (257, 258, 259)
    one, two = np.array([1, 2]), np.array([3])
    assert framed(frame, one, None, 9)[0].tolist() == [257, 1, 2, 259]
    assert framed(frame, one, two, 9)[0].tolist() == [257, 1, 2, 258, 3, 259]


@pytest.mark.parametrize(
    ("cut", "expected"), [("head", [0, 1, 2, 3, 4]), ("tail", [3, 4, 5, 6, 7]), ("head_tail", [0, 1, 5, 6, 7])]
)
def test_a_long_text_keeps_its_head_its_tail_or_both(cut, expected):
    tokens, types = framed(FRAME, np.arange(8), None, 7, cut)
    assert tokens.tolist() == [101, *expected, 103] and types.tolist() == [0] * 7
    assert framed(FRAME, np.arange(5), None, 7, cut)[0].tolist() == [101, 0, 1, 2, 3, 4, 103], "nothing where all fits"


def test_head_and_tail_are_those_of_the_paper():
    places = kept(1000, 510, "head_tail")
    assert places.tolist() == [*range(128), *range(1000 - 382, 1000)]


def test_a_text_that_is_too_long_is_refused_where_cutting_is_forbidden():
    with pytest.raises(UserError, match=r"^a\.csv:7: 3 and 4 tokens, expected at most 6 of rows\.sequence_length = 9"):
        framed(FRAME, np.arange(3), np.arange(4), 9, "error", "a.csv:7")
    assert len(framed(FRAME, np.arange(3), np.arange(3), 9, "error", "a.csv:7")[0]) == 9
    with pytest.raises(UserError, match=r"sequence_length = 4: expected 3 and some tokens"):
        framed(FRAME, np.arange(3), np.arange(4), 4)


def test_a_tokenizer_without_the_special_tokens_of_an_encoder_is_refused():
    with pytest.raises(UserError, match=r"the byte tokenizer has no \[CLS\]"):
        encoder_frame(build_tokenizer(TokenizerSettings(), ()))


def test_of_two_texts_the_longer_one_loses_tokens_as_in_the_published_code():
    def published(a, b, room):
        a, b = list(range(a)), list(range(b))
        while len(a) + len(b) > room:
            a.pop() if len(a) > len(b) else b.pop()
        return len(a), len(b)

    for a, b, room in itertools.product(range(9), range(9), range(2, 14)):
        assert fitting(a, b, room) == published(a, b, room), (a, b, room)


def test_each_text_of_a_pair_is_cut_on_the_side_that_is_asked_for():
    one, two = np.arange(10), np.arange(20, 23)
    tokens, types = framed(FRAME, one, two, 9, "tail")
    assert tokens.tolist() == [101, 7, 8, 9, 102, 20, 21, 22, 103]
    assert types.tolist() == [0] * 5 + [1] * 4


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 12), st.integers(1, 12))
def test_windows_cover_every_token_and_begin_a_stride_apart(tokens, size, stride):
    if stride > size:
        return
    found = windows(np.array(tokens, np.int64), size, stride)
    for text, count in enumerate(tokens):  # the loop of BERT's run_squad.py
        expected, begin = [], 0
        while True:
            expected.append((begin, min(begin + size, count)))
            if begin + size >= count:
                break
            begin += stride
        own = found.texts == text
        assert list(zip(found.begins[own], found.ends[own], strict=True)) == expected


def test_windows_of_texts_with_less_room_and_a_stride_that_leaves_gaps():
    found = windows(np.array([7, 7]), np.array([7, 4]), 2)
    assert found.texts.tolist() == [0, 1, 1, 1]
    assert found.begins.tolist() == [0, 0, 2, 4] and found.ends.tolist() == [7, 4, 6, 7]
    with pytest.raises(UserError, match=r"^stride = 5: expected 1 to 4, the tokens of a window"):
        windows(np.array([7, 7]), np.array([7, 4]), 5)
    assert windows(np.array([3]), 3, 100).ends.tolist() == [3], "a text that fits needs no stride"


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12))
def test_each_token_is_read_where_it_has_most_around_it_as_in_the_published_code(tokens, size, stride):
    if stride > size:
        return
    found = windows(np.array([tokens]), size, stride)
    best = most_context(found.begins, found.ends, tokens)
    for at in range(tokens):  # _check_is_max_context of run_squad.py
        score, index = None, None
        for number, (begin, end) in enumerate(zip(found.begins, found.ends, strict=True)):
            if begin <= at <= end - 1:
                own = min(at - begin, end - 1 - at) + 0.01 * (end - begin)
                if score is None or own > score:
                    score, index = own, number
        assert best[at] == index
    assert most_context(np.array([2]), np.array([3]), 4).tolist() == [-1, -1, 0, -1]
