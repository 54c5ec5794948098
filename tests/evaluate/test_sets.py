"""Files in the form of each set, small enough to be written here: what is asked, what is right, what is left out."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import csv
import json

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.questions import OpenQuestion, Question
from lmjax.evaluate.sets import FAMILIES, SETS, sets_of
from lmjax.kinds import QUESTION_SETS


def read(folder, name, *records, pool=False):
    """The rows of a set whose file has these lines: texts, or records of JSON."""
    path = folder / (SETS[name].pool if pool else SETS[name].file)
    path.parent.mkdir(exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return SETS[name].rows(folder, pool=pool)


def reasons(left_out):
    return [each.split(": ", 1)[1] for each in left_out]


def schema(text, at, pronoun, candidate, right):
    return {"text": text, "label": right, "target": {"span1_text": candidate, "span2_text": pronoun, "span2_index": at}}


def test_the_command_line_names_every_set():
    assert set(QUESTION_SETS) == set(SETS) and len(QUESTION_SETS) == len(SETS)


def test_a_family_is_all_of_its_sets():
    assert sets_of("piqa,fewclue,arc") == (
        *("piqa", "eprstmt", "tnews", "ocnli", "bustm", "cluewsc"),
        *("arc_easy", "arc_challenge"),
    )
    assert {name for family in FAMILIES.values() for name in family} <= set(SETS)


def test_the_lines_of_a_pronoun_are_one_question_and_its_end_alone_is_scored(tmp_path):
    text = "The ball hit the table because it was big ."
    kites = "Ann's sisters lost the kites so they cried ."
    found, left_out = read(
        *(tmp_path, "winograd", schema(text, 6, "it", "the table", False), schema(text, 6, "it", "The ball", True)),
        *(schema(kites, 6, "they", "The kites", False), schema(kites, 6, "they", "Ann's sisters", True)),
    )
    assert left_out == []
    before = "The ball hit the table because"
    answers = (" the table was big.", " the ball was big.")
    assert found[0] == Question(before, answers, 1, end=" was big.")
    assert found[0].solved == "The ball hit the table because the ball was big."
    assert found[1].choices == (" the kites cried.", " Ann's sisters cried.")


@pytest.mark.parametrize(
    ("pronoun", "candidate", "written"),
    [
        ("his", "Bob", " Bob's"),
        ("their", "the boys", " the boys'"),
        ("He", "the boy", " The boy"),
        ("he", "The boy", " the boy"),
        ("he", "Theo", " Theo"),
        ("he", "Mr. Poe", " Mr. Poe"),
    ],
)
def test_a_candidate_is_written_as_its_pronoun_is(tmp_path, pronoun, candidate, written):
    text = f"So then {pronoun} car won."
    rows = (schema(text, 2, pronoun, candidate, True), schema(text, 2, pronoun, "X", False))
    assert read(tmp_path, "winograd", *rows).questions[0].choices[0] == f"{written} car won."


def test_a_schema_whose_candidates_were_not_all_published_is_left_out(tmp_path):
    one = schema("Al saw Bo and he ran.", 4, "he", "Al", True)
    wrong = [schema("Al saw Bo as he ran.", 4, "he", name, False) for name in ("Al", "Bo")]
    moved = [schema("Al saw Bo but he ran.", 3, "he", name, name == "Al") for name in ("Al", "Bo")]
    last = [schema("Al saw Bo so did he", 5, "he", name, name == "Al") for name in ("Al", "Bo")]
    good = [schema("Al saw Bo when he ran.", 4, "he", name, name == "Al") for name in ("Al", "Bo")]
    found, left_out = read(tmp_path, "winograd", one, *wrong, *moved, *last, *good)
    assert len(found) == 1
    assert reasons(left_out) == [
        "of the candidates Al, 1 are right; expected 1 of several",
        "of the candidates Al, Bo, 0 are right; expected 1 of several",
        "word 3 begins 'but he ran.', expected the pronoun 'he'",
        "nothing follows the pronoun 'he'",
    ]


def test_the_beginnings_of_winogrande_share_whole_words_alone(tmp_path):
    options = ["He fed the bear and the bed", "He fed the bear and the bear"]
    found, left_out = read(
        *(tmp_path, "winogrande", {"context_options": options, "continuation": "ran.", "gold": 1}),
        {"context_options": ["Al", "Bo"], "continuation": "ran.", "gold": 0},
        {"context_options": ["Al", "Bo"], "continuation": "ran.", "gold": 2},
    )
    assert found == [
        Question("He fed the bear and the", (" bed ran.", " bear ran."), 1, end=" ran."),
        Question("", ("Al ran.", "Bo ran."), 0, end=" ran."),
    ]
    assert reasons(left_out) == ["the right answer is number 2 of 2"]


def test_boolq_rte_and_sst2_are_answered_by_one_of_two_words(tmp_path):
    rows = [{"passage": "P.", "question": "is it", "answer": each} for each in (True, False, "yes")]
    found, left_out = read(tmp_path, "boolq", *rows)
    assert found == [Question("P.\nquestion: is it?\nanswer:", (" yes", " no"), gold, "answer:") for gold in (0, 1)]
    assert reasons(left_out) == ["the answer is 'yes', expected true or false"]
    found, left_out = read(tmp_path, "rte", "premise,hypothesis,label", '"A, b.",C.,not_entailment', "A.,B.,neutral")
    assert found == [Question("A, b.\nquestion: C. True or False?\nanswer:", (" True", " False"), 1, "answer:")]
    assert reasons(left_out) == ["the label is 'neutral', expected entailment or not_entailment"]
    found, left_out = read(tmp_path, "sst2", 'a "fine\t1', "no label", "bad\t2")
    asked = 'a "fine\nQuestion: Is this sentence positive or negative?\nAnswer:'
    assert found == [Question(asked, (" negative", " positive"), 1, "Answer:")]
    assert reasons(left_out) == [
        "[] follow the sentence, expected 0 or 1 after a tab",
        "['2'] follow the sentence, expected 0 or 1 after a tab",
    ]


def test_a_line_separator_of_unicode_ends_no_line_and_a_cell_may_be_long(tmp_path):
    found, left_out = read(tmp_path, "sst2", "a\u2028b\t1", "c\t0")
    assert [each.context.partition("\n")[0] for each in found] == ["a\u2028b", "c"] and not left_out
    before = csv.field_size_limit(131_072)  # Python's own
    try:
        assert len(read(tmp_path, "arc_easy", f'"{"a" * 200_000}","a","b","c","d","A"').questions) == 1
    finally:
        csv.field_size_limit(before)


def test_an_examination_is_answered_by_a_letter(tmp_path):
    row = '"What?","a","b","c","d","C"'
    asked, letters = "What?\nA. a\nB. b\nC. c\nD. d\nAnswer:", (" A", " B", " C", " D")
    found, left_out = read(
        *(tmp_path, "arc_easy_letter", row, '"What?","a","b","","d","2"', '"What?","a","b","","d","A"'),
    )
    assert found == [Question(f"Question: {asked}", letters, 2, "Answer:")]
    assert reasons(left_out) == ["the answer is '2', expected A, B, C or D", "choice 2 is empty"]
    found, left_out = read(tmp_path, "mmlu", f'"high_school_art",{row}', f'"art",{row[:-2]}E"', '"art","a"')
    assert found == [Question(asked, letters, 2, "Answer:", group="high_school_art")]
    assert reasons(left_out) == [
        "the answer is 'E', expected A, B, C or D",
        "1 cells, expected a question, four choices and a letter",
    ]


def test_the_shots_of_an_examination_are_the_first_of_its_subject(tmp_path):
    def row(subject, number):
        return f'"{subject}","{subject} {number}?","a","b","c","d","D"'

    rows = read(tmp_path, "mmlu", row("old_art", 9), row("law", 9))
    pool = read(tmp_path, "mmlu", *(row(name, n) for n in (9, 1, 2, 3) for name in ("law", "old_art")), pool=True)
    prompts = SETS["mmlu"].prompts(rows.questions[0], pool.questions, 2, np.random.default_rng(0))
    about = "The following are multiple choice questions (with answers) about old art."
    shown = [f"old_art {n}?\nA. a\nB. b\nC. c\nD. d\nAnswer:" for n in (1, 2, 9)]
    assert prompts[0] == "\n\n".join([about, f"{shown[0]} D", f"{shown[1]} D", shown[2]])
    assert prompts[1:] == ["\n\n".join([about, f"{shown[1]} D", shown[2]]), f"{about}\n\n{shown[2]}"]
    with pytest.raises(UserError, match="the pool has 3 other questions"):
        SETS["mmlu"].prompts(rows.questions[0], pool.questions, 4, np.random.default_rng(0))


def test_no_blank_stands_before_a_choice_in_chinese(tmp_path):
    rows = [{"premise": "下雨了。", "choice1": "地湿了。", "choice2": "天晴了。", "label": 0, "question": kind}
            for kind in ("effect", "cause", "why")]  # fmt: skip
    found, left_out = read(tmp_path, "xcopa_zh", *rows)
    assert [each.context for each in found] == ["下雨了，所以", "下雨了，因为"]
    assert found[0].solved == "下雨了，所以地湿了。"
    assert reasons(left_out) == ["it asks for 'why', expected cause or effect"]
    found, left_out = read(
        *(tmp_path, "tnews", {"sentence": "甲", "label": 116}, {"sentence": "乙", "label": 105}),
    )
    assert (found[0].solved, len(found[0].choices)) == ("以下内容属于什么新闻：甲。\n答：电竞", 15)
    assert "the label is '105'" in left_out[0]
    for name, label, end in (("eprstmt", "Negative", "消极"), ("ocnli", "neutral", "可能"), ("bustm", "1", "一个意思"),
                             ("cluewsc", "false", "不是")):  # fmt: skip
        row = {"sentence": "甲", "sentence1": "乙", "sentence2": "丙", "text": "丁", "label": label}
        (one,) = read(tmp_path, name, row | {"target": {"span1_text": "戊", "span2_text": "己"}}).questions
        assert one.solved.endswith(end) and " " not in one.solved


def test_a_cloze_has_a_blank_in_the_place_of_the_word(tmp_path):
    rows = read(tmp_path, "lambada_cloze", {"text": "He saw the old house"}, {"text": "house"})
    assert rows.questions == [Question("He saw the old ____. ->", (" house",), 0)]
    assert reasons(rows.left_out) == ["it has no last word"]
    (prompt,) = SETS["lambada_cloze"].prompts(rows.questions[0], [], 0, np.random.default_rng(0))
    assert prompt == "Fill in blank:\n\nHe saw the old ____. ->"


def test_the_number_of_gsm8k_is_what_follows_the_marks(tmp_path):
    found, left_out = read(
        *(tmp_path, "gsm8k", {"question": "Q?", "answer": "1+1=2\n#### 1,002"}, {"question": "Q?", "answer": "2"}),
    )
    assert found == [OpenQuestion("Question: Q?\nAnswer:", " 1+1=2\n#### 1,002", ("1,002",))]
    assert reasons(left_out) == ["its answer has no number after ####"]


def test_a_question_of_squad_may_have_no_answer(tmp_path):
    asked = [
        {"question": "Who?", "is_impossible": False, "answers": [{"text": "Al"}, {"text": "A. l."}]},
        {"question": "Why?", "is_impossible": True, "answers": []},
    ]
    found, _ = read(tmp_path, "squad_v2", {"data": [{"title": "A_b", "paragraphs": [{"context": "C.", "qas": asked}]}]})
    before = "Title: A b\n\nBackground: C.\n\nQ: "
    assert found == [
        OpenQuestion(f"{before}Who?\n\nA:", " Al", ("Al", "A. l."), "with_answer"),
        OpenQuestion(f"{before}Why?\n\nA:", " unanswerable", (), "without_answer"),
    ]


def test_the_figure_of_gpt_3_is_a_prompt(tmp_path):
    words = ["en,fr", "cheese,fromage", "sea otter,loutre de mer", "peppermint,menthe poivrée"]
    rows = read(tmp_path, "en_fr", *words, "plush girafe,girafe peluche", ",x", "x,").questions
    assert len(rows) == 5  # an empty answer is none
    prompt = SETS["en_fr"].prompts(rows[0], rows[:4], 3, np.random.default_rng((1, 0)))[0]
    assert prompt == (
        "Translate English to French:\nsea otter => loutre de mer\npeppermint => menthe poivrée\n"
        "plush girafe => girafe peluche\ncheese =>"
    )
    assert SETS["fr_en"].rows(tmp_path).questions[0] == OpenQuestion("fromage =", " cheese", ("cheese",))


def test_a_text_of_several_summaries_is_asked_once(tmp_path):
    found, left_out = read(tmp_path, "tldr", "context,ref_text", '"Long.\n\nTL;DR:",Short.', '"Long.\n\nTL;DR:",Short.')
    assert found == [OpenQuestion("Long.\n\nTL;DR:", " Short.", ("Short.",))]
    assert reasons(left_out) == ["its text is that of an earlier line"]


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("winograd", {"text": "a"}, "record 1 is none of this set: KeyError: 'target'"),
        ("boolq", '{"passage": 1', "expected an object in each line"),
        ("mmlu", '"a\x00', "malformed CSV"),
        ("squad_v2", [1], "record 1 is none of this set: TypeError"),
        ("squad_v2", "{", "expected JSON"),
        ("rte", "premise,hypothesis\na,b", "record 1 is none of this set: KeyError: 'label'"),
        ("eprstmt", {"label": "Negative"}, "record 1 is none of this set: KeyError: 'sentence'"),
    ],
)
def test_a_file_that_is_no_such_set_is_refused(tmp_path, name, record, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, record)
