"""SQuAD's JSON: published files with their counts, and files made by hand."""

import gzip
import json

import pytest

from lmjax.data.labelled import Question
from lmjax.data.labelled_sets import read_examples
from lmjax.data.labelled_sets.questions import WRONG_SPAN
from lmjax.errors import UserError
from lmjax.settings import LabelledSettings

PASSAGE = "苏轼是北宋著名的文学家与政治家，眉州眉山人。"  # noqa: RUF001
ROW = {"id": "q1", "question": "苏轼是哪里人？", "answers": [{"text": "眉州眉山人", "answer_start": 16}]}  # noqa: RUF001


def squad(*rows, **article):
    return {"version": "v2.0", "data": [{"paragraphs": [{"context": PASSAGE, "qas": list(rows)}], **article}]}


def read(tmp_path, contents, skip=False):
    path = tmp_path / "file.json"
    path.write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())
    bad = "skip" if skip else "error"
    return read_examples(LabelledSettings(path=str(path), form="squad", on_bad_record=bad))


def test_a_question_has_its_passage_and_all_that_the_file_says(tmp_path):
    none = {"id": "q2", "question": "?", "answers": [], "is_impossible": True, "plausible_answers": [{"x": 1}]}
    unlabelled = {"id": "q3", "question": "?", "is_impossible": False, "answers": []}
    bare, empty = {"id": "q4", "question": "?"}, {"id": "q5", "question": "?", "answers": []}
    found = read(tmp_path, squad(ROW | {"is_impossible": False}, none, unlabelled, bare, empty, title="苏轼"))
    answer = (("眉州眉山人", 16),)
    where = f"{tmp_path}/file.json: question q"
    assert found.items == [
        Question("q1", "苏轼是哪里人？", PASSAGE, answer, False, "苏轼", ""),  # noqa: RUF001
        Question("q2", "?", PASSAGE, (), True, "苏轼", ""),
        Question("q3", "?", PASSAGE, (), False, "苏轼", ""),
        Question("q4", "?", PASSAGE, (), False, "苏轼", ""),
        Question("q5", "?", PASSAGE, (), True, "苏轼", ""),
    ]
    assert [each.where for each in found.items] == [where + number for number in "12345"]
    assert PASSAGE[16:21] == "眉州眉山人"


def test_a_mark_and_compression_change_nothing(tmp_path):
    marked = b"\xef\xbb\xbf" + json.dumps(squad(ROW)).encode()
    path = tmp_path / "file.json.gz"
    path.write_bytes(gzip.compress(marked))
    packed = read_examples(LabelledSettings(path=str(path), form="squad")).items
    assert packed == read(tmp_path, marked).items == read(tmp_path, squad(ROW)).items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": [{"text": "眉州眉山人", "answer_start": 15}]},
            f"{WRONG_SPAN}: '眉州眉山人' at 15, where the passage has '，眉州眉山'",  # noqa: RUF001
        ),
        ({"answers": [{"text": "眉州", "answer_start": -1}]}, "'眉州' at -1, where the passage has '苏轼'"),
        ({"answers": [{"text": "", "answer_start": 3}]}, "'' at 3, where the passage has ''"),
        ({"is_impossible": True}, "it is marked as impossible and has answers: '眉州眉山人'"),
        ({"question": " "}, "its question is empty"),
        ({"question": "\ud800"}, "its question holds a lone surrogate"),
    ],
)
def test_a_question_that_is_none_is_an_error_with_file_and_id_or_a_counted_skip(tmp_path, change, message):
    other = ROW | {"id": "q2"}
    with pytest.raises(UserError) as error:
        read(tmp_path, squad(other, ROW | change))
    assert str(error.value).startswith(f"{tmp_path}/file.json: question q1: ")
    assert message in str(error.value)
    found = read(tmp_path, squad(other, ROW | change), skip=True)
    assert [each.id for each in found.items] == ["q2"]
    assert list(found.skipped.values()) == [1]


def test_a_repeated_id_is_an_error(tmp_path):
    with pytest.raises(UserError, match="question q1: an earlier question has its id"):
        read(tmp_path, squad(ROW, ROW))


def test_a_later_answer_at_another_place_is_a_reference_alone(tmp_path):
    later = [{"text": "眉山", "answer_start": 0}, {"text": "不在文中", "answer_start": -1}]
    (question,) = read(tmp_path, squad(ROW | {"answers": ROW["answers"] + later})).items
    assert question.answers == (("眉州眉山人", 16), ("眉山", -1), ("不在文中", -1))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"data": [{"paragraphs": [{"context": PASSAGE}]}]}, "no field 'data[0].paragraphs[0].qas'"),
        (squad({"id": 7, "question": "?"}), "data[0].paragraphs[0].qas[0].id = 7: expected a string"),
        (
            squad(ROW | {"answers": [{"text": "眉州"}]}),
            "no field 'data[0].paragraphs[0].qas[0].answers[0].answer_start'",
        ),
        (b"[]", "found []"),
        (b'{"data": [}', "expected JSON"),
        (b'{"data": ["\xff"]}', "byte 0xff is not UTF-8"),
        ({"data": []}, "no example"),
    ],
)
def test_a_file_of_another_form_is_an_error_that_names_its_field(tmp_path, contents, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, contents, skip=True)
    assert f"{tmp_path}/file.json" in str(error.value)
    assert message in str(error.value)


def test_records_are_read_as_squads_rows_or_with_lists_of_answers(tmp_path):
    lists = {"text": ["眉州眉山人", "眉山"], "answer_start": [16, 18]}
    records = [
        {"id": "q1", "question": "?", "context": PASSAGE, "answers": ROW["answers"], "title": "苏轼"},
        {"question": "?", "passage": PASSAGE, "answers": lists},
        {"question": "?", "passage": PASSAGE, "answers": {"text": [], "answer_start": []}},
        {"question": "?", "passage": PASSAGE},
    ]
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_examples(LabelledSettings(path=str(path), form="questions")).items
    one, two = ("眉州眉山人", 16), ("眉山", 18)
    assert found == [
        Question("q1", "?", PASSAGE, (one,), False, "苏轼", ""),
        Question("2", "?", PASSAGE, (one, two), False, "", ""),
        Question("3", "?", PASSAGE, (), True, "", ""),
        Question("4", "?", PASSAGE, (), False, "", ""),
    ]
    assert [each.where for each in found] == [f"{path}:{number}" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": 7}, "a field has another type: question = 7: expected a string"),
        ({"answers": [{"text": "x"}]}, "no field 'answers[0].answer_start'"),
        ({"answers": "x"}, "a field has another type: answers = 'x'"),
        ({"answers": {"text": ["眉州"], "answer_start": [0]}}, "its first answer is not at its place"),
        ({"passage": " "}, "its passage is empty"),
        ({"passage": None}, "passage is no text: None"),
        ({"id": "1"}, "an earlier question has its id"),
    ],
)
def test_a_record_that_is_no_question_is_an_error_with_its_line(tmp_path, change, message):
    path = tmp_path / "file.jsonl"
    good = {"question": "?", "passage": PASSAGE}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(UserError) as error:
        read_examples(LabelledSettings(path=str(path), form="questions"))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


PUBLISHED = {  # questions, answers, impossible, skipped by a wrong place, skipped by an empty question
    "squad_v2/squad2_dev.json": (3822, 6282, 2053, 0, 0),
    "squad_v1_en/xquad_en_dev.json": (664, 664, 0, 0, 0),
    "squad_v1_zh/xquad_zh_dev.json": (664, 664, 0, 0, 0),
    "cmrc2018/cmrc2018_dev_a.json": (1185, 3555, 0, 3, 0),
    "cmrc2018/cmrc2018_trial.json": (995, 995, 0, 5, 2),
}


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_their_questions_and_wrong_places_are_counted(shared_data, name):
    folder, file = name.split("/")
    path = str(shared_data(folder) / file)
    found = read_examples(LabelledSettings(path=path, form="squad", on_bad_record="skip"))
    skipped = (found.skipped.pop(WRONG_SPAN, 0), found.skipped.pop("its question is empty", 0))
    answers = sum(len(each.answers) for each in found.items)
    impossible = sum(each.impossible for each in found.items)
    assert (len(found), answers, impossible, *skipped) == PUBLISHED[name]
    assert found.skipped == {}
    for each in found.items:
        for text, start in each.answers[:1]:
            assert each.passage[start : start + len(text)] == text
