"""Answers from scores: against a plain loop over windows and pairs, and given back character for character."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import time
from dataclasses import replace

import numpy as np
import pytest

from lmjax.data.frames import encoder_frame
from lmjax.data.labelled import Question
from lmjax.data.labelled_sets import read_examples
from lmjax.data.question_windows import question_rows
from lmjax.evaluate.answer_spans import extracted_answers
from lmjax.evaluate.squad import question_metrics
from lmjax.settings import LabelledSettings, TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

PASSAGE = "苏轼是北宋著名的文学家与政治家，眉州眉山人。"
SU_SHI = Question("q", "苏轼是哪里人？", PASSAGE, (("眉州眉山人", 16),), False, "", "")
LETTERS = wordpiece(["[UNK]", "[CLS]", "[SEP]", *"abcde"], lowercase=True)


def letters(*passages):
    return [Question(str(number), "a", passage, (), True, "", "") for number, passage in enumerate(passages)]


def rows_of(questions, tokenizer=LETTERS, **sizes):
    return question_rows(questions, tokenizer, encoder_frame(tokenizer), **sizes)


def scores_at(rows, spans, high=9.0):
    """Scores [R, T] of first and last columns: `high` at these, 0 elsewhere."""
    each = [np.zeros((len(rows), rows.sequence_length), np.float32) for _ in "ab"]
    for array, columns in zip(each, np.asarray(spans).T, strict=True):
        array[np.arange(len(rows)), columns] = high
    return each


@pytest.mark.parametrize("vocabulary", ["chinese", "bert"])
def test_the_answer_of_the_example_is_given_back_character_for_character(vocabulary, request):
    if vocabulary == "bert":  # most of the passage is [UNK]
        tokenizer = load_tokenizer(request.getfixturevalue("shared_data")("vocab_bert"), kind="wordpiece")
    else:
        settings = TokenizerSettings(kind="wordpiece", vocab_size=5 + len(set(PASSAGE + "哪里？")))
        tokenizer = build_tokenizer(settings, [PASSAGE + SU_SHI.question])
    rows = rows_of([SU_SHI], tokenizer)
    unknown = np.count_nonzero(rows.passages.ids == tokenizer.special.unk)
    assert unknown == 0 if vocabulary == "chinese" else unknown > 7
    (answer,) = extracted_answers(rows, *scores_at(rows, rows.spans))
    assert answer.text(0.0) == "眉州眉山人"
    best = answer.spans[0]
    assert (best.begin, best.end, PASSAGE[best.begin : best.end]) == (16, 21, "眉州眉山人")


def test_case_accents_and_blanks_of_the_text_are_kept():
    tokenizer = wordpiece(["[UNK]", "[CLS]", "[SEP]", "jose", "lives", "in", "zurich", "?"], lowercase=True)
    passage = "  José\u00a0 lives in  ZÜRICH "
    question = Question("q", "?", passage, ((passage.strip(), 2),), False, "", "")
    rows = rows_of([question], tokenizer)
    (answer,) = extracted_answers(rows, *scores_at(rows, rows.spans))
    assert answer.text(0.0) == "José\u00a0 lives in  ZÜRICH"


def plainly(rows, starts_RT, ends_RT, n_best, longest):
    """Every span of every window, by loops: (score, begin, end) of the n best of each question, and the null score."""
    windows = list(zip(*(array.tolist() for array in rows.windows), strict=True))
    out = []
    for number in range(len(rows.questions)):
        spans, null = [], np.inf
        own = [row for row, window in enumerate(windows) if window[0] == number]
        for row in own:
            _, begin, end = windows[row]
            first = len(rows.asked.ids[rows.asked.firsts[number] : rows.asked.firsts[number + 1]]) + 2
            null = min(null, starts_RT[row, 0] + ends_RT[row, 0])

            def context(token, row):
                _, a, b = windows[row]
                return min(token - a, b - 1 - token) + 0.01 * (b - a) if a <= token < b else -1

            here = range(begin, end)
            led = [token for token in here if max(own, key=lambda other: context(token, other)) == row]
            column = lambda token: first + token - begin  # noqa: B023, E731
            firsts = sorted(led, key=lambda token: -starts_RT[row, column(token)])[:n_best]
            lasts = sorted(here, key=lambda token: -ends_RT[row, column(token)])[:n_best]
            for a in firsts:
                for b in lasts:
                    if a <= b < a + longest:
                        score = float(starts_RT[row, column(a)]) + float(ends_RT[row, column(b)])
                        spans.append((score, a, b))
        out.append((sorted(spans, reverse=True), null))
    return out


@pytest.mark.parametrize(("n_best", "longest", "stride"), [(20, 30, 5), (3, 4, 5), (5, 30, 2)])
def test_the_n_best_are_those_of_a_plain_loop_over_windows_and_pairs(n_best, longest, stride):
    rng = np.random.default_rng(n_best)
    passages = [" ".join(rng.choice(list("abcde"), size)) for size in rng.integers(1, 45, 30)]
    rows = rows_of(letters(*passages), length=16, stride=stride, question_length=4)
    starts_RT, ends_RT = (rng.normal(size=(len(rows), 16)).astype(np.float32) for _ in "ab")
    found = extracted_answers(rows, starts_RT, ends_RT, n_best=n_best, longest=longest)
    for answer, passage, (spans, null) in zip(
        found, passages, plainly(rows, starts_RT, ends_RT, n_best, longest), strict=True
    ):
        texts = {}
        for score, first, last in spans:  # of spans with the same text the best counts
            texts.setdefault(passage[2 * first : 2 * last + 1], (2 * first, 2 * last + 1, score))
        expected = list(texts.items())[:n_best]
        got = [(span.text, (span.begin, span.end, pytest.approx(span.score))) for span in answer.spans]
        assert got == expected
        if expected:
            assert answer.null_score == pytest.approx(null - expected[0][1][2], abs=1e-5)
            shares = np.exp([null, *(place[2] for _, place in expected)])
            shares /= shares.sum()
            assert [answer.null_probability, *(span.probability for span in answer.spans)] == pytest.approx(shares)


def test_a_score_outside_of_the_passage_is_no_span():
    rows = rows_of(letters("b c d"), length=16, stride=4, question_length=4)
    starts_RT, ends_RT = scores_at(rows, [[4, 4]])
    starts_RT[0, [0, 1, 2, 6, 9]] = ends_RT[0, [0, 1, 2, 6, 9]] = 99  # [CLS], the question, [SEP], [SEP], padding
    (answer,) = extracted_answers(rows, starts_RT, ends_RT)
    assert (answer.spans[0].text, answer.spans[0].score) == ("c", 18)
    assert answer.null_score == 2 * 99 - 18


def test_no_answer_has_the_score_of_its_own_column():
    rows = rows_of(letters("b c d"), length=16, stride=4, question_length=4, null_last=True)
    starts_RT, ends_RT = scores_at(rows, [[4, 4]], high=1.0)
    starts_RT[0, 0], starts_RT[0, 6] = 50, 7
    (answer,) = extracted_answers(rows, starts_RT, ends_RT)
    assert (answer.spans[0].text, answer.null_score) == ("c", 7 - 2)


def test_an_answer_is_none_above_the_threshold_alone():
    rows = rows_of(letters("b c d"), length=16, stride=4, question_length=4)
    starts_RT, ends_RT = scores_at(rows, [[4, 4]], high=1.0)
    starts_RT[0, 0] = 3.5
    (answer,) = extracted_answers(rows, starts_RT, ends_RT)
    assert answer.null_score == 1.5
    assert [answer.text(threshold) for threshold in (1.4, 1.5, None)] == ["", "c", "c"]
    assert answer.record(1.4) | {"n_best": []} == {
        **{"id": "0", "text": "", "null_score": 1.5, "n_best": []},
        "null_probability": answer.null_probability,
    }
    record = answer.record(None)
    assert (record["text"], record["begin"], record["end"], record["n_best"][0]["text"]) == ("c", 2, 3, "c")
    (sure,) = extracted_answers(rows, starts_RT, ends_RT, may_be_none=False)
    assert sure.null_probability == 0
    assert sum(span.probability for span in sure.spans) == pytest.approx(1)


def test_a_passage_without_a_piece_has_no_answer():
    rows = rows_of(letters("\x00", "a"), length=16, stride=4, question_length=4)
    empty, other = extracted_answers(rows, *scores_at(rows, [[0, 0], [0, 0]]))
    assert (empty.spans, empty.text(None), empty.null_score) == ((), "", 0.0)
    assert other.text(None) == "a"


def test_scores_may_be_cut_behind_the_longest_row():
    rows = rows_of(letters("b c d e", "b"), length=16, stride=4, question_length=4)
    rng = np.random.default_rng(0)
    starts_RT, ends_RT = (rng.normal(size=(2, 16)).astype(np.float32) for _ in "ab")
    short = int(rows.lengths.max())
    assert extracted_answers(rows, starts_RT[:, :short], ends_RT[:, :short]) == extracted_answers(
        rows, starts_RT, ends_RT
    )


@pytest.mark.data
def test_ten_thousand_questions_take_seconds_and_right_columns_give_right_answers(shared_data):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    path = shared_data("squad_v2") / "squad2_dev.json"
    questions = read_examples(LabelledSettings(path=str(path), form="squad")).items
    many = [replace(each, passage=each.passage + " " * copy) for copy in range(3) for each in questions][:10_000]
    began = time.process_time()
    rows = rows_of(many, tokenizer)
    scores = scores_at(rows, rows.spans)
    answers = extracted_answers(rows, *scores)
    assert time.process_time() - began < 20  # 1.5 seconds where it was written; 60 are asked for
    texts, nulls = [answer.text(0.0) for answer in answers], [answer.null_score for answer in answers]
    references = [[text for text, _ in each.answers] for each in many]
    found = question_metrics(texts, references, "squad_2", nulls)
    assert len(rows) == 10_850
    assert found["NoAns_exact"] == 1.0
    assert found["HasAns_exact"] == pytest.approx(0.9963, abs=5e-5)  # answers of part of a word, or above 30 pieces
