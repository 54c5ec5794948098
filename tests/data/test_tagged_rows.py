"""Tagged words as rows: labels at first tokens, windows in which a word counts once, values of words gathered back."""

import numpy as np
import pytest

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, POSITIONS, SEGMENTS, TOKENS, TYPES
from lmjax.data.frames import encoder_frame
from lmjax.data.labelled import TaggedWords
from lmjax.data.labelled_sets import read_examples
from lmjax.data.tagged_rows import tagged_rows
from lmjax.errors import UserError
from lmjax.settings import LabelledSettings
from lmjax.tokenizers.tokenizer import load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

TOKENIZER = wordpiece(["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "in", "rome", "a", "##b", "##c"], lowercase=True)
TAGS = ("O", "B-LOC", "I-LOC")


def rows_of(*sentences, tags=TAGS, **sizes):
    return tagged_rows(sentences, TOKENIZER, encoder_frame(TOKENIZER), tags, **sizes)


def test_the_first_token_of_a_word_has_its_label_and_the_others_none():
    rows = rows_of(TaggedWords(("Playing", "in", "Rome"), ("O", "O", "B-LOC"), "f:1"), length=8)
    batch = rows.batch(np.array([0]))
    assert batch[TOKENS].tolist() == [[1, 3, 4, 5, 6, 2, 0, 0]]
    assert batch[LABELS].tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]
    assert batch[LABEL_WEIGHTS].tolist() == [[0, 1, 0, 1, 1, 0, 0, 0]]
    assert batch[SEGMENTS].tolist() == [[1] * 6 + [0] * 2]
    assert batch[POSITIONS].tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert batch[TYPES].tolist() == [[0] * 8]
    assert {array.dtype.name for array in batch.values()} == {"int32", "float32"}


def test_words_without_tokens_and_sentences_without_tags_count_nothing():
    words = ("Rome", "\x00", "in")
    rows = rows_of(TaggedWords(words, ("B-LOC", "I-LOC", "O"), ""), TaggedWords(words, None, ""), length=6)
    batch = rows.batch(np.arange(2))
    assert batch[LABELS].tolist() == [[0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch[LABEL_WEIGHTS].tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6]
    values = np.arange(12).reshape(2, 6)
    assert rows.of_words(values) == [{0: 1, 2: 2}, {0: 7, 2: 8}]


def test_a_word_of_a_long_sentence_counts_once_where_most_is_around_its_first_token():
    rng = np.random.default_rng(4)
    sentences = []
    for size in (0, 1, 7, 30, 31, 57):
        words = tuple("a" + "bc"[number % 2] * rng.integers(0, 3) for number in range(size))
        sentences.append(TaggedWords(words or ("\x00",), tuple(rng.choice(TAGS, max(size, 1))), ""))
    rows = rows_of(*sentences, length=12, stride=3)
    batch = rows.batch(np.arange(len(rows)))
    assert batch[LABEL_WEIGHTS].sum() == sum(len(each.words) for each in sentences) - 1  # that of no token
    assert rows.lengths.tolist() == batch[SEGMENTS].sum(axis=1).tolist()
    for number, sentence in enumerate(sentences):
        firsts = np.cumsum([0, *(len(word) for word in sentence.words)])
        mine = np.flatnonzero(rows.windows.texts == number)
        for row, column in np.argwhere(batch[LABEL_WEIGHTS][mine] > 0):
            place = rows.windows.begins[mine[row]] + column - 1
            word = firsts.tolist().index(place)
            assert TAGS[batch[LABELS][mine[row], column]] == sentence.tags[word]
            around = [
                min(place - a, b - 1 - place) + 0.01 * (b - a) if a <= place < b else -1
                for a, b in zip(rows.windows.begins[mine], rows.windows.ends[mine], strict=True)
            ]
            assert int(np.argmax(around)) == row
    gathered = rows.of_words(np.where(batch[LABEL_WEIGHTS] > 0, batch[LABELS], 99))
    assert [[TAGS[value] for value in each.values()] for each in gathered[1:]] == [
        list(each.tags) for each in sentences[1:]
    ]
    assert gathered[0] == {}


def test_rows_are_read_in_any_order():
    rows = rows_of(TaggedWords(("a",) * 30, ("O",) * 30, ""), TaggedWords(("in",), ("B-LOC",), ""), length=12, stride=5)
    all_rows = rows.batch(np.arange(len(rows)))
    some = rows.batch(np.array([3, 0, len(rows) - 1]))
    assert all(np.array_equal(some[name], all_rows[name][[3, 0, -1]]) for name in all_rows)


def test_a_tag_that_the_training_data_lack_is_an_error_with_its_place():
    with pytest.raises(UserError, match=r"f:7: the tag 'B-LOCO': expected one of the 3 tags.*did you mean 'B-LOC'"):
        rows_of(TaggedWords(("in", "Rome"), ("O", "B-LOCO"), "f:7"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "before", "without"),
    [("wnut17/emerging.dev.conll", " ", 4), ("zh_resume_ner/dev.char.bmes", "", 0)],
)
def test_every_word_of_a_published_file_has_its_label_once(shared_data, name, before, without):
    folder, file = name.split("/")
    found = read_examples(LabelledSettings(path=str(shared_data(folder) / file), form="conll")).items
    labels = sorted({tag for each in found for tag in each.tags})
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    rows = tagged_rows(found, tokenizer, encoder_frame(tokenizer), labels, length=32, stride=12, before=before)
    batch = rows.batch(np.arange(len(rows)))
    gathered = rows.of_words(np.where(batch[LABEL_WEIGHTS] > 0, batch[LABELS], -9))
    for each, values in zip(found, gathered, strict=True):
        assert [labels[value] for value in values.values()] == [each.tags[word] for word in values]
    assert batch[LABEL_WEIGHTS].sum() == sum(map(len, gathered))
    assert sum(len(each.words) for each in found) - sum(map(len, gathered)) == without  # signs that BERT drops
