"""Questions on passages as rows: fields, windows and columns of answers, against a plain loop; shared passages."""

import numpy as np
import pytest

from lmjax.data.batch import LABEL_WEIGHTS, POSITIONS, SEGMENTS, SPANS, TOKENS, TYPES
from lmjax.data.frames import encoder_frame
from lmjax.data.labelled import Question
from lmjax.data.labelled_sets import read_examples
from lmjax.data.question_windows import question_rows, shared_passages
from lmjax.errors import UserError
from lmjax.settings import LabelledSettings
from lmjax.tokenizers.tokenizer import load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

WORDS = ["[UNK]", "[CLS]", "[SEP]", "where", "who", "is", "rome", "in", "it", "##aly", "a", "b", "c", "d", "e", "."]
TOKENIZER = wordpiece(WORDS, lowercase=True)


def ask(question, passage, answer="", start=None, impossible=False, number="q"):
    start = passage.find(answer) if start is None else start
    return Question(number, question, passage, ((answer, start),) if answer else (), impossible, "", "file:1")


def rows_of(*questions, tokenizer=TOKENIZER, **sizes):
    return question_rows(questions, tokenizer, encoder_frame(tokenizer), **{"question_length": 4, **sizes})


def test_a_row_is_the_question_and_its_passage_with_the_columns_of_the_answer():
    rows = rows_of(ask("Where is Rome", "Rome is in Italy .", "Italy"), length=16, stride=4)
    batch = rows.batch(np.array([0]))
    assert [WORDS[index] for index in batch[TOKENS][0][:13]] == [
        *("[CLS]", "where", "is", "rome", "[SEP]", "rome", "is", "in", "it", "##aly", ".", "[SEP]", "[UNK]")
    ]
    assert batch[TYPES][0].tolist() == [0] * 5 + [1] * 7 + [0] * 4
    assert batch[SEGMENTS][0].tolist() == [1] * 12 + [0] * 4
    assert batch[POSITIONS][0].tolist() == [*range(12), 0, 0, 0, 0]
    assert batch[SPANS].tolist() == [[8, 9]]
    assert batch[LABEL_WEIGHTS].tolist() == [1.0]
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        **dict.fromkeys((TOKENS, TYPES, POSITIONS, SEGMENTS), ("int32", (1, 16))),
        SPANS: ("int32", (1, 2)),
        LABEL_WEIGHTS: ("float32", (1,)),
    }
    assert rows.lengths.tolist() == [12]


@pytest.mark.parametrize(
    ("question", "span", "weight"),
    [
        (ask("who", "a b c", "b"), [4, 4], 1.0),
        (ask("who", "a b c", "a b c"), [3, 5], 1.0),
        (ask("who", "a bc c", "b"), [4, 4], 1.0),  # a part of a word is the piece that has it
        (ask("who", "in Italy", "aly"), [5, 5], 1.0),  # the piece before ends where the answer begins
        (ask("who", "in Italy", "It"), [4, 4], 1.0),
        (ask("who", "a b c", impossible=True), [0, 0], 1.0),
        (ask("who", "a b c"), [0, 0], 0.0),  # not labelled
        (ask("who", "a \x00 c", "\x00"), [0, 0], 1.0),  # a character that no piece has
        (ask("who", "a b a b", "b", start=6), [6, 6], 1.0),
        (ask("who is in it e e e e e", "a b c", "c"), [8, 8], 1.0),  # the question is cut to four pieces
    ],
)
def test_the_answer_is_found_by_its_characters_or_is_cls(question, span, weight):
    batch = rows_of(question, length=24, stride=8).batch(np.array([0]))
    assert (batch[SPANS][0].tolist(), batch[LABEL_WEIGHTS][0]) == (span, weight)


def test_windows_are_those_of_a_plain_loop_and_an_answer_is_in_those_that_have_all_of_it():
    rng = np.random.default_rng(2)
    questions = []
    for _ in range(40):
        words = rng.choice(list("abcde"), rng.integers(1, 40))
        first = rng.integers(len(words))
        last = min(first + rng.integers(3), len(words) - 1)
        answer = " ".join(words[first : last + 1])
        question = " ".join(["who"] * rng.integers(1, 6))
        questions.append(ask(question, " ".join(words), answer, 2 * first))
    rows, row = rows_of(*questions, length=20, stride=5), 0
    batch = rows.batch(np.arange(len(rows)))
    several = 0
    for question in questions:
        asked = question.question.split()[:4]
        words, (answer, start) = question.passage.split(), question.answers[0]
        room, begin = 20 - 3 - len(asked), 0
        while True:
            part = words[begin : begin + room]
            text = ["[CLS]", *asked, "[SEP]", *part, "[SEP]"]
            assert [WORDS[index] for index in batch[TOKENS][row][: len(text)]] == text
            assert batch[SEGMENTS][row].sum() == rows.lengths[row] == len(text)
            assert (batch[TOKENS][row][len(text) :] == 0).all()
            first, last = start // 2 - begin, (start + len(answer)) // 2 - begin
            inside = 0 <= first <= last < len(part)
            shift = len(asked) + 2
            assert batch[SPANS][row].tolist() == ([first + shift, last + shift] if inside else [0, 0])
            row, several = row + 1, several + (begin > 0)
            if begin + len(part) == len(words):
                break
            begin += 5
    assert row == len(rows)
    assert several > 30


def test_no_answer_is_the_first_column_or_the_last_one():
    questions = ask("who", "a b c d e a b c d e", "d"), ask("who", "a b", impossible=True)
    for last, spans in ((False, [[6, 6], [0, 0], [0, 0]]), (True, [[6, 6], [6, 6], [5, 5]])):
        rows = rows_of(*questions, length=12, stride=7, null_last=last)
        assert rows.spans.tolist() == spans
        assert rows.null_columns.tolist() == ([11, 6, 5] if last else [0, 0, 0])


def test_rows_are_read_in_any_order():
    rows = rows_of(ask("who", "a b c d e a b c d e", "d"), ask("where", "a"), length=12, stride=3)
    all_rows = rows.batch(np.arange(len(rows)))
    some = rows.batch(np.array([2, 0, 2]), np.array([4, 5, 6]))
    assert all(np.array_equal(some[name], all_rows[name][[2, 0, 2]]) for name in all_rows)


@pytest.mark.parametrize(("length", "stride", "message"), [(7, 1, "sequence_length = 7"), (12, 9, "stride = 9")])
def test_a_row_or_a_stride_that_leaves_words_out_is_refused(length, stride, message):
    with pytest.raises(UserError, match=message):
        rows_of(ask("who", "a b c d e a b c d e", "d"), length=length, stride=stride)


def test_shared_passages_are_told_once():
    train = [ask("who", "a b", "a"), ask("where", "c", "c")]
    validation = [ask("who", "d", "d"), ask("is it", "c", "c"), ask("who", "c", "c")]
    assert shared_passages(train, validation) == ["c"]
    assert shared_passages(train, validation[:1]) == []


@pytest.mark.data
def test_passages_of_squad_v1_are_in_squad_v2(shared_data):
    files = ("squad_v2", "squad2_dev.json"), ("squad_v1_en", "xquad_en_dev.json")
    train, validation = (
        read_examples(LabelledSettings(path=str(shared_data(folder) / file), form="squad")).items
        for folder, file in files
    )
    assert len(shared_passages(train, validation)) == 49
    assert len({question.passage for question in validation}) == 130


@pytest.mark.data
@pytest.mark.parametrize("name", ["squad_v2/squad2_dev.json", "cmrc2018/cmrc2018_dev_a.json"])
def test_the_columns_of_published_answers_hold_their_characters(shared_data, name):
    """The answer's characters are in the pieces of the span, and the pieces around it have none of them."""
    folder, file = name.split("/")
    settings = LabelledSettings(path=str(shared_data(folder) / file), form="squad", on_bad_record="skip")
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    questions = read_examples(settings).items[:600]
    rows = question_rows(questions, tokenizer, encoder_frame(tokenizer))
    found = set()
    for row in np.flatnonzero(rows.spans[:, 1]):
        number = rows.windows.texts[row]
        places = rows.spans[row] - rows.first_columns[row] + rows.windows.begins[row]
        offsets = rows.offsets[rows.passage_numbers[number]]
        text, start = questions[number].answers[0]
        begin, end = offsets[places[0], 0], offsets[places[1], 1]
        stripped = text.strip()
        assert begin <= start + text.index(stripped) < start + text.index(stripped) + len(stripped) <= end
        assert offsets[places[0], 1] > start and offsets[places[1], 0] < start + len(text)
        assert places[0] == 0 or offsets[places[0] - 1, 1] <= start
        assert places[1] + 1 == len(offsets) or offsets[places[1] + 1, 0] >= start + len(text)
        found.add(number)
    assert found == {number for number, question in enumerate(questions) if question.answers}
