"""Sets of choices, from files made by hand and from the published ones."""

import json
from collections import Counter

import pytest

from lmjax.data.labelled import BadExampleError, Choices
from lmjax.data.labelled_sets import read_examples
from lmjax.errors import UserError
from lmjax.settings.labelled import LabelledSettings

SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
COPA = '<item id="7" asks-for="{}" most-plausible-alternative="{}"><p>It rained.</p><a1> Wet. </a1><a2>Dry.</a2></item>'


def read(tmp_path, name, text, **settings):
    (tmp_path / name).write_text(text)
    return read_examples(LabelledSettings(str(tmp_path / name), **settings)).items


def test_swags_own_csv_and_its_lines_give_the_same_choices(tmp_path):
    own = read(
        tmp_path, "val.csv", f'{SWAG}\n0,lsmdc,1,"He sits, and. He",He sits,He,gen,a.,b.,"c, d",e.,2\n', form="swag"
    )
    lines = {"startphrase": "He sits, and. He", "choices": ["a.", "b.", "c, d", "e."], "answer": 2}
    assert own == read(tmp_path, "a.jsonl", json.dumps(lines), form="swag")
    assert own == [Choices("He sits, and. He", ("a.", "b.", "c, d", "e."), 2, "")]
    assert own[0].where == f"{tmp_path}/val.csv:2"
    test = SWAG.removesuffix(",label")
    assert read(tmp_path, "a.csv", f"{test}\n0,l,1,He,h,H,gen,a,b,c,d\n", form="swag")[0].label is None


def test_hellaswag_codah_and_copa_are_read_as_they_are_published(tmp_path):
    row = {"ctx": "A man", "endings": ["sits.", "lies.", "runs."], "label": "1"}
    assert read(tmp_path, "a.jsonl", json.dumps(row), form="hellaswag") == [
        Choices("A man", ("sits.", "lies.", "runs."), 1, "")
    ]
    row["label"] = ""
    assert read(tmp_path, "a.jsonl", json.dumps(row), form="hellaswag")[0].label is None, "a test part"
    assert read(tmp_path, "a.tsv", 'o\tI "said\ta\tb"\t\td\t3\n', form="codah") == [
        Choices('I "said', ("a", 'b"', "", "d"), 3, "")
    ]
    xml = f"<copa>{COPA.format('cause', 1)}{COPA.format('effect', 2)}</copa>"
    items = read(tmp_path, "copa.xml", xml, form="copa")
    assert items == [
        Choices("It rained. What was the cause of this?", ("Wet.", "Dry."), 0, ""),
        Choices("It rained. What happened as a result?", ("Wet.", "Dry."), 1, ""),
    ]
    assert items[0].where == f"{tmp_path}/copa.xml: item 7"


@pytest.mark.parametrize(
    ("form", "name", "text", "message"),
    [
        (
            "swag",
            "a.jsonl",
            '{"startphrase": "a", "choices": [], "answer": 0}',
            r"a\.jsonl:1: choices is no list of te",
        ),
        ("swag", "a.jsonl", '{"startphrase": "a", "choices": ["b", 1]}', r"a\.jsonl:1: choices is no text: 1"),
        ("swag", "a.jsonl", '{"startphrase": "a", "choices": ["b", "c"], "answer": 2}', r"expected '0' or '1': 2; fix"),
        ("swag", "a.csv", "startphrase,ending0\na,b\n", r"a\.csv:2: no field 'ending1'"),
        ("hellaswag", "a.jsonl", '{"ctx": "a", "endings": ["b", "c"], "label": true}', r"unknown label.*: 'true'"),
        ("codah", "a.tsv", "o\ta\tb\tc\td\t0\n", r"a\.tsv:1: expected 7 cells: category.*: 6 cells"),
        ("codah", "a.tsv", "o\ta\tb\tc\td\te\t4\n", r"a\.tsv:1: an unknown label.*: '4'"),
        ("copa", "a.xml", COPA.format("reason", 1), r"a\.xml: item 7: it asks for neither cause nor effect: 'reason'"),
        ("copa", "a.xml", COPA.format("cause", 3), r"a\.xml: item 7: an unknown label, expected '1' or '2': '3'"),
    ],
)
def test_a_record_that_is_no_choice_is_refused_by_its_place_and_reason(tmp_path, form, name, text, message):
    with pytest.raises(BadExampleError, match=message):
        read(tmp_path, name, text, form=form)


def test_a_file_that_is_no_xml_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.xml: expected XML"):
        read(tmp_path, "a.xml", "<copa>", form="copa")


@pytest.mark.data
@pytest.mark.parametrize(
    ("form", "name", "labels", "context", "option"),
    [
        *[("swag", "swag/swag_dev.jsonl", (83, 81, 99, 87), "Students lower their eyes nervously. She", "turns with")],
        *[("hellaswag", "hellaswag/hellaswag_400.jsonl", (106, 97, 104, 93), "Pole vault is", "watch from around")],
        *[("codah", "codah/codah_dev.tsv", (475, 499, 510, 516), "I am always very hungry before I", "glad that I do")],
        *[("copa", "copa/copa-dev.xml", (250, 250), "My body cast a shadow over the grass. What was", "The grass was")],
    ],
)
def test_published_files_have_their_choices(shared_data, form, name, labels, context, option):
    folder, _, file = name.partition("/")
    examples = read_examples(LabelledSettings(str(shared_data(folder) / file), form=form))
    assert examples.skipped == {}
    assert Counter(each.label for each in examples.items) == dict(enumerate(labels))
    assert {len(each.options) for each in examples.items} == {len(labels)}
    assert examples.items[0].context.startswith(context)
    assert examples.items[0].options[1].startswith(option)
