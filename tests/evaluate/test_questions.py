"""Sets of questions: each published form is read, what is no question is counted, and shots never hold the question."""

import json

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.questions import Question, spread, with_shots
from lmjax.evaluate.sets import SETS

POOL = [Question(f"Q{number}?", (" yes", " no"), number % 2) for number in range(6)]


def put(folder, name, text):
    path = folder / SETS[name].file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


def test_an_ending_of_hellaswag_follows_its_context_after_a_blank(tmp_path):
    row = {"ctx": "A cat", "endings": ["sat.", "ran.", "ate.", "left."], "label": 3}
    put(tmp_path, "hellaswag", lines(row))
    (found,) = SETS["hellaswag"].rows(tmp_path).questions
    assert found == Question("A cat", (" sat.", " ran.", " ate.", " left."), 3)
    assert found.solved == "A cat left."


def test_a_question_with_an_empty_choice_is_left_out_with_its_place(tmp_path):
    rows = [{"ctx": "A", "endings": ["a", ending], "label": 0} for ending in ("b", "", " ")]
    path = put(tmp_path, "hellaswag", lines(*rows))
    found, left_out = SETS["hellaswag"].rows(tmp_path)
    assert found == [Question("A", (" a", " b"), 0)]
    assert left_out == [f"{path}:2: choice 1 is empty", f"{path}:3: choice 1 is empty"]


def test_piqa_has_its_answers_in_a_file_beside_it(tmp_path):
    path = put(tmp_path, "piqa", lines({"goal": "How?", "sol1": "so", "sol2": "thus"}))
    labels = path.with_name("piqa_dev_labels.lst")
    labels.write_text("1\n")
    assert SETS["piqa"].rows(tmp_path).questions == [
        Question("Question: How?\nAnswer:", (" so", " thus"), 1, "Answer:")
    ]
    labels.write_text("1\n0\n")
    with pytest.raises(UserError, match=r"2 labels for 1 questions of piqa_dev\.jsonl"):
        SETS["piqa"].rows(tmp_path)
    labels.write_bytes(b"0\n\xff\n")
    with pytest.raises(UserError, match=r"piqa_dev_labels\.lst:2: byte 0xff is not UTF-8"):
        SETS["piqa"].rows(tmp_path)


def test_rows_of_arc_that_are_no_question_are_left_out_with_their_place(tmp_path):
    rows = [
        '"What?","a","b","c","d","C"',
        '"What?","a","b","","d","2"',
        '"What?","a","b","","d","A"',
        '"What?","a","B"',
    ]
    path = put(tmp_path, "arc_easy", "\n".join(rows))
    found, left_out = SETS["arc_easy"].rows(tmp_path)
    assert found == [Question("Question: What?\nAnswer:", (" a", " b", " c", " d"), 2, "Answer:")]
    assert left_out == [
        f"{path}:2: the answer is '2', expected A, B, C or D",
        f"{path}:3: choice 2 is empty",
        f"{path}:4: 3 cells, expected a question, four choices and a letter",
    ]


def test_copa_asks_for_a_cause_or_an_effect(tmp_path):
    asked = [("cause", 2, "He sat.", "It rained."), ("effect", 1, "He cried.", "It shone."), ("cause", 3, "A", "B")]
    items = [
        f'<item asks-for="{kind}" most-plausible-alternative="{gold}"><p>He fell.</p><a1>{a}</a1><a2>{b}</a2></item>'
        for kind, gold, a, b in asked
    ]
    put(tmp_path, "copa", f"<copa>{''.join(items)}</copa>")
    found, left_out = SETS["copa"].rows(tmp_path)
    assert found == [
        Question("He fell because", (" he sat.", " it rained."), 1),
        Question("He fell therefore", (" he cried.", " it shone."), 0),
    ]
    assert len(left_out) == 1 and "copa-dev.xml:3: it asks for 'cause', and '3' is right" in left_out[0]


def test_lambada_asks_for_the_last_word(tmp_path):
    put(tmp_path, "lambada", lines({"text": "He saw the old house"}, {"text": "house"}))
    found, left_out = SETS["lambada"].rows(tmp_path)
    assert found == [Question("He saw the old", (" house",), 0)]
    assert len(left_out) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hellaswag", '{"ctx": "A"}', "record 1 is none of this set: KeyError: 'endings'"),
        ("hellaswag", lines({"ctx": "A", "endings": ["a"], "label": 1}), "the right answer is number 1 of 1"),
        ("hellaswag", lines({"ctx": "A", "endings": ["a"], "label": "x"}), "record 1 is none of this set: ValueError"),
        ("hellaswag", "[1]", "expected an object in each line"),
        ("hellaswag", "{", "record 1 is none of this set"),
        ("lambada", "", "no question is left of 0 records; it is empty"),
        ("copa", "<copa", "expected XML"),
        ("arc_easy", "\x00", "1 cells"),
        ("hellaswag", lines({"ctx": 5, "endings": ["a", "b"], "label": 1}), "its context is 5, expected a text"),
        ("hellaswag", lines({"ctx": "A\ud800", "endings": ["a", "b"], "label": 1}), "UnicodeEncodeError"),
        ("hellaswag", lines({"ctx": "A", "endings": ["a", "\udc80"], "label": 1}), "UnicodeEncodeError"),
        ("hellaswag", lines({"ctx": "A", "endings": ["a", "b"], "label": 1e400}), "OverflowError"),
        ("hellaswag", lines({"ctx": "A", "endings": ["a"], "label": 0}), "it has one choice, expected several"),
        ("gsm8k", lines({"question": "A", "answer": 5}), "record 1 is none of this set: AttributeError"),
        ("copa", "<?xml version='1.0' encoding='none'?><a/>", "expected XML: unknown encoding"),
    ],
)
def test_a_file_that_is_no_such_set_is_refused(tmp_path, name, text, message):
    put(tmp_path, name, text)
    with pytest.raises(UserError, match=message):
        SETS[name].rows(tmp_path)


def test_a_question_with_one_choice_is_left_out_beside_others(tmp_path):
    put(tmp_path, "hellaswag", lines(*({"ctx": "A", "endings": e, "label": 0} for e in (["a"], ["a", "b"]))))
    found, left_out = SETS["hellaswag"].rows(tmp_path)
    assert found == [Question("A", (" a", " b"), 0)]
    assert left_out == [f"{tmp_path / SETS['hellaswag'].file}:1: it has one choice, expected several"]


def test_an_empty_line_of_csv_is_no_record(tmp_path):
    put(tmp_path, "mmlu", "law,Q,a,b,c,d,A\n\n")
    found, left_out = SETS["mmlu"].rows(tmp_path)
    assert (len(found), left_out) == (1, [])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"lambada_dev\.jsonl: cannot be read"):
        SETS["lambada"].rows(tmp_path)


def test_shots_are_solved_questions_and_never_the_one_that_is_asked():
    prompts = with_shots(POOL[0], POOL, 5, np.random.default_rng(0))
    assert len(prompts) == 6 and prompts[-1] == "Q0?"
    shots = prompts[0].split("\n\n")
    assert shots[-1] == "Q0?"
    assert sorted(shots[:-1]) == ["Q1? no", "Q2? yes", "Q3? no", "Q4? yes", "Q5? no"]
    assert [prompt.count("\n\n") for prompt in prompts] == [5, 4, 3, 2, 1, 0]
    assert all(prompts[0].endswith(prompt) for prompt in prompts)


def test_the_seed_draws_the_shots():
    drawn = [with_shots(POOL[0], POOL, 2, np.random.default_rng(seed))[0] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"--shots 6: the pool has 5 other questions"):
        with_shots(POOL[0], POOL, 6, np.random.default_rng(0))


def test_fewer_examples_are_evenly_spread_over_the_file():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 5) == spread(range(3), None) == [0, 1, 2]
