"""Sets of texts with labels, from files made by hand and from the published ones: what is read, refused and counted."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import gzip
import json
from collections import Counter

import pytest

from lmjax.data.labelled import BadExampleError, Labelled
from lmjax.data.labelled_sets import read_examples
from lmjax.errors import UserError
from lmjax.settings.labelled import LabelledSettings

MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    " sentence1 sentence2 label1 gold_label"
).replace(" ", "\t")
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score".replace(" ", "\t")


def read(tmp_path, name, data, **settings):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_examples(LabelledSettings(str(path), **settings))


def pairs(examples):
    return [(*each.texts, each.label) for each in examples.items]


# A form, a file in the way of its publisher, and the texts and labels in it.
BY_HAND = [
    ("glue_mnli", f'{MNLI}\n0\t1\t2\tfiction\tx\tx\tx\tx\tHe said "no\tNo "one\tneutral\tentailment\n', "entailment"),
    ("glue_qnli", 'index\tquestion\tsentence\tlabel\n0\tHe said "no\tNo "one\tnot_entailment\r\n', "not_entailment"),
    ("glue_qqp", 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tHe said "no\tNo "one\t1\n', "1"),
    ("glue_mrpc", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "no\tNo "one\r\n', "1"),
    ("glue_rte", 'index\tsentence1\tsentence2\tlabel\n0\tHe said "no\tNo "one\tentailment', "entailment"),
    ("glue_wnli", 'index\tsentence1\tsentence2\tlabel\n0\tHe said "no\tNo "one\t0\n', "0"),
    ("glue_stsb", f'{STSB}\n0\tn\tf\t2012\t1\ta\tb\tHe said "no\tNo "one\t2.615\n', 2.615),
]


@pytest.mark.parametrize(("form", "data", "label"), BY_HAND, ids=[form for form, *_ in BY_HAND])
def test_glues_own_files_are_read_with_quotes_as_text(tmp_path, form, data, label):
    examples = read(tmp_path, "train.tsv", data, form=form)
    assert examples.items == [Labelled(('He said "no', 'No "one'), label, "")]
    assert examples.items[0].where == f"{tmp_path}/train.tsv:2" and examples.skipped == {}


def test_sentences_of_glue_and_of_their_publishers(tmp_path):
    assert pairs(read(tmp_path, "a.tsv", "sentence\tlabel\nfine film \t1\n", form="glue_sst2")) == [("fine film ", "1")]
    assert pairs(read(tmp_path, "a.tsv", "fine film\t1\nbad\t0\n", form="sst2")) == [("fine film", "1"), ("bad", "0")]
    assert pairs(read(tmp_path, "a.tsv", "gj04\t0\t*\tThey drank.\n", form="cola")) == [("They drank.", "0")]
    assert pairs(read(tmp_path, "a.csv", 'He ""is"" in,"a, ""b""",5.0\r\n', form="stsb")) == [
        ('He ""is"" in', 'a, "b"', 5.0)
    ]


def test_a_part_without_labels_gives_examples_without_them(tmp_path):
    examples = read(tmp_path, "test.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n", form="glue_rte")
    assert pairs(examples) == [("a", "b", None)]
    assert pairs(read(tmp_path, "a.jsonl", '{"text": "a"}\n')) == [("a", None)]


def test_lines_blank_cells_and_control_characters_are_read_as_glue_reads_them(tmp_path):
    """Only a line feed ends a line; a blank text is a text; a NUL stays, which WordPiece leaves out."""
    data = "\ufeffsentence\tlabel\r\n\t1\r\na\x0bb\u2028c\x85\t0\r\n\r\nd\0e\t1"
    examples = read(tmp_path, "a.tsv", data, form="glue_sst2")
    assert pairs(examples) == [("", "1"), ("a\x0bb\u2028c\x85", "0"), ("d\0e", "1")]
    assert [each.where.rpartition(":")[2] for each in examples.items] == ["2", "3", "5"]


def test_fewclue_is_read_line_by_line(tmp_path):
    row = {"sentence": "苹果", "label": 110, "label_desc": "news_military", "keywords": "", "id": 1}
    assert pairs(read(tmp_path, "a.json", json.dumps(row), form="tnews")) == [("苹果", "110")]
    row = {"text": "那舌头，它是", "label": True, "target": {"span1_index": 1, "span1_text": "舌头"}}
    row["target"] |= {"span2_index": 4, "span2_text": "它"}
    assert pairs(read(tmp_path, "a.json", json.dumps(row), form="cluewsc")) == [("那_舌头_，[它]是", "true")]
    row["target"] |= {"span2_index": 3, "span2_text": "，"}
    assert pairs(read(tmp_path, "a.json", json.dumps(row), form="cluewsc")) == [("那_舌头_[，]它是", "true")]
    row["target"]["span2_index"] = 5
    with pytest.raises(UserError, match=r"a\.json:1: span2 is not at its place in the text: '，'"):
        read(tmp_path, "a.json", json.dumps(row), form="cluewsc")


def test_records_with_names_are_found_by_known_columns_or_by_those_that_are_given(tmp_path):
    assert pairs(read(tmp_path, "a.csv", "premise,hypothesis,label\nA,B,yes\n")) == [("A", "B", "yes")]
    assert pairs(read(tmp_path, "a.tsv", 'text\tlabel\n"A\t2\n')) == [('"A', "2")]
    lines = '{"q": "A", "a": "B", "good": true}\n{"q": "C", "a": "D", "good": 3}\n{"q": "E", "a": "F", "good": 0.5}'
    assert pairs(read(tmp_path, "a.jsonl", lines, fields=("q", "a"), label="good")) == [
        *(("A", "B", "true"), ("C", "D", "3"), ("E", "F", 0.5))
    ]
    assert pairs(read(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text": "A", "label": "x"}'))) == [("A", "x")]
    with pytest.raises(UserError, match=r"fields = \['b'\]: expected columns of .*a\.csv:2, which has \['a'\]"):
        read(tmp_path, "a.csv", "a\n1\n", fields=("b",))
    with pytest.raises(UserError, match=r"label = \['b'\]: expected columns of"):
        read(tmp_path, "a.csv", "text\n1\n", label="b")
    with pytest.raises(UserError, match=r"fields = \(\): expected the columns of the texts in .*\['a'\]; name one"):
        read(tmp_path, "a.csv", "a\n1\n")


# A form, a file with something wrong in it, and what the message says.
WRONG = [
    (
        "sst2",
        "a.tsv",
        "fine\t1\nfine\t2\n",
        r"a\.tsv:2: an unknown label, expected '0' or '1': '2'; fix it, or set on_",
    ),
    ("sst2", "a.tsv", "fine\t1\t\n", r"a\.tsv:1: expected 2 cells: sentence, label: 3 cells"),
    ("glue_qqp", "a.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\ta\n", r"a\.tsv:2: expected 4 cells.*found 2"),
    ("glue_rte", "a.tsv", "index\tsentence1\tlabel\n0\ta\tentailment\n", r"a\.tsv:2: no field 'sentence2'"),
    ("glue_rte", "a.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t\n", r"a\.tsv:2: an unknown label.*: ''"),
    ("stsb", "a.csv", "a,b,5.1\n", r"a\.csv:1: a score that is none, expected 0 to 5: '5\.1'"),
    ("stsb", "a.csv", "a,b,nan\n", r"a\.csv:1: a score that is none"),
    ("stsb", "a.csv", 'a,"b,1\n', r"a\.csv:1: malformed CSV"),
    ("bustm", "a.json", '{"sentence1": "a", "sentence2": 5, "label": "1"}', r"a\.json:1: sentence2 is no text: 5"),
    ("bustm", "a.json", '{"sentence1": "\\ud800", "sentence2": "", "label": "1"}', r"sentence1 holds a lone surrogate"),
    ("bustm", "a.json", "{", r"a\.json:1: malformed JSON"),
    ("ocnli", "a.json", '{"sentence1": "a", "sentence2": "b", "label": "-"}', r"an unknown label, .*: '-'"),
    ("records", "a.jsonl", '{"text": "a", "label": [1]}', r"a\.jsonl:1: an unknown label: \[1\]"),
    ("sst2", "a.tsv", b"\xff\t1\n", r"a\.tsv:1: byte 0xff is not UTF-8"),
]


@pytest.mark.parametrize(("form", "name", "data", "message"), WRONG)
def test_a_record_that_is_none_is_refused_by_file_line_and_reason(tmp_path, form, name, data, message):
    with pytest.raises(BadExampleError, match=message):
        read(tmp_path, name, data, form=form)
    if len(data.splitlines()) == 1:
        with pytest.raises(UserError, match=r"no example in records 0% to 100%; the first of 1 skipped records: .*"):
            read(tmp_path, name, data, form=form, on_bad_record="skip")


def test_bad_records_are_skipped_and_counted_by_their_reasons_where_that_is_asked(tmp_path):
    data = "a\t1\nb\t2\nc\nd\t0\ne\tx\n"
    examples = read(tmp_path, "a.tsv", data, form="sst2", on_bad_record="skip")
    assert pairs(examples) == [("a", "1"), ("d", "0")]
    assert examples.skipped == {"an unknown label, expected '0' or '1'": 2, "expected 2 cells: sentence, label": 1}


def test_parts_of_a_file_neither_overlap_nor_leave_a_gap_and_bad_records_outside_are_no_matter(tmp_path):
    data = "".join(f"{number}\t{number % 2}\n" for number in range(9)) + "bad\n"
    first = read(tmp_path, "a.tsv", data, form="sst2", end=0.35)
    second = read(tmp_path, "a.tsv", data, form="sst2", begin=0.35, end=0.9)
    assert [each.texts[0] for each in (*first.items, *second.items)] == [str(number) for number in range(9)]
    with pytest.raises(BadExampleError):
        read(tmp_path, "a.tsv", data, form="sst2", begin=0.35)


def test_a_form_or_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"form = 'sst3': expected a known form; did you mean 'sst2'"):
        read(tmp_path, "a.tsv", "", form="sst3")
    with pytest.raises(UserError, match=r"none\.tsv"):
        read_examples(LabelledSettings(str(tmp_path / "none.tsv"), form="sst2"))
    with pytest.raises(UserError, match=r"no example in records 0% to 100%"):
        read(tmp_path, "a.tsv", "", form="sst2")


TWO, THREE = ("entailment", "not_entailment"), ("contradiction", "entailment", "neutral")
TOPICS = {str(label): 16 for label in (*range(100, 105), *range(106, 111), *range(112, 117))}
# The published files: form, file, and how often each label occurs, or how many scores there are and their sum.
PUBLISHED = [
    ("sst2", "sst2/train.tsv", {"0": 3310, "1": 3610}),
    ("sst2", "sst2/dev.tsv", {"0": 428, "1": 444}),
    ("cola", "cola/in_domain_train.tsv", {"0": 2528, "1": 6023}),
    ("cola", "cola/in_domain_dev.tsv", {"0": 162, "1": 365}),
    ("rte", "rte/train.csv", dict(zip(TWO, (1249, 1241), strict=True))),
    ("nli", "nli_mix/mnli_dev.csv", dict(zip(THREE, (812, 868, 776), strict=True))),
    ("nli", "nli_mix/snli_dev.csv", dict(zip(THREE, (549, 563, 527), strict=True))),
    ("nli", "nli_mix/qnli_dev.csv", dict(zip(TWO, (855, 855), strict=True))),
    ("nli", "nli_mix/wnli_train.csv", dict(zip(TWO, (312, 323), strict=True))),
    ("stsb", "stsb_en/train.csv", (5749, 15528.043)),
    ("stsb", "stsb_en/dev.csv", (1500, 3545.861)),
    ("stsb", "stsb_zh/train.csv", (3000, 7858.211)),
    ("stsb", "stsb_zh/dev.csv", (1500, 3545.861)),
    ("eprstmt", "fewclue/eprstmt_train_0.json", {"Negative": 15, "Positive": 17}),
    ("eprstmt", "fewclue/eprstmt_dev_0.json", {"Negative": 19, "Positive": 13}),
    ("tnews", "fewclue/tnews_train_0.json", TOPICS),
    ("tnews", "fewclue/tnews_dev_0.json", TOPICS),
    ("ocnli", "fewclue/ocnli_train_0.json", dict(zip(THREE, (11, 7, 14), strict=True))),
    ("ocnli", "fewclue/ocnli_dev_0.json", dict(zip(THREE, (15, 10, 7), strict=True))),
    ("bustm", "fewclue/bustm_train_0.json", {"0": 16, "1": 16}),
    ("bustm", "fewclue/bustm_dev_0.json", {"0": 15, "1": 17}),
    ("cluewsc", "fewclue/cluewsc_train_0.json", {"false": 12, "true": 20}),
    ("cluewsc", "fewclue/cluewsc_dev_0.json", {"false": 17, "true": 15}),
]
FIRST = {
    "stsb_zh/dev.csv": ("一个戴着硬帽子的人在跳舞。", "一个戴着硬帽的人在跳舞。", 5.0),
    "rte/train.csv": (
        "No Weapons of Mass Destruction Found in Iraq Yet.",
        "Weapons of Mass Destruction Found in Iraq.",
        "not_entailment",
    ),
    "sst2/dev.tsv": ("one long string of cliches", "0"),
    "cola/in_domain_dev.tsv": ("The sailors rode the breeze clear of the rocks.", "1"),
    "fewclue/bustm_dev_0.json": ("话说有时候我就有点难过", "有时候我就有点难过", "1"),
}


@pytest.mark.data
@pytest.mark.parametrize(("form", "name", "labels"), PUBLISHED, ids=[name for _, name, _ in PUBLISHED])
def test_published_files_have_their_examples(shared_data, form, name, labels):
    folder, _, file = name.partition("/")
    examples = read_examples(LabelledSettings(str(shared_data(folder) / file), form=form))
    assert examples.skipped == {}
    if isinstance(labels, dict):
        assert Counter(each.label for each in examples.items) == labels
    else:
        assert (len(examples), round(sum(each.label for each in examples.items), 3)) == labels
    assert pairs(examples)[0] == FIRST.get(name, pairs(examples)[0])


@pytest.mark.data
def test_the_schemas_of_cluewsc_are_marked_in_their_texts(shared_data):
    examples = read_examples(LabelledSettings(str(shared_data("fewclue") / "cluewsc_dev_0.json"), form="cluewsc"))
    assert examples.items[0].texts[0].startswith("刀光一闪，那_舌头_象一只受惊的老鼠")
    assert "看那样子，[它]是想往天上去的" in examples.items[0].texts[0]
