"""Readers of tagged words: published files with their counts, and files made by hand."""

import json

import pytest

from lmjax.data.labelled import TaggedWords
from lmjax.data.labelled_sets import read_examples
from lmjax.data.labelled_sets.tagged_words import UNEQUAL, UNKNOWN_TAG
from lmjax.data.tag_schemes import entities_of, scheme_of
from lmjax.errors import UserError
from lmjax.settings import LabelledSettings

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

-DOCSTART- -X- -X- O
Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

"""


def read(tmp_path, text, form="conll", skip=False, name="file.conll"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    bad = "skip" if skip else "error"
    return read_examples(LabelledSettings(path=str(path), form=form, on_bad_record=bad))


def pairs(found):
    return [list(zip(each.words, each.tags, strict=True)) for each in found.items]


def test_conll_2003_is_read_by_its_last_column(tmp_path):
    found = read(tmp_path, CONLL_2003)
    assert found.items == [
        TaggedWords(("EU", "rejects", "German"), ("B-ORG", "O", "B-MISC"), ""),
        TaggedWords(("Peter", "Blackburn"), ("B-PER", "I-PER"), ""),
    ]
    assert [each.where.removeprefix(str(tmp_path)) for each in found.items] == ["/file.conll:3", "/file.conll:8"]


def test_tabs_line_ends_and_a_mark_change_nothing(tmp_path):
    tabbed = "\ufeff" + CONLL_2003.replace(" ", "\t").replace("\n", "\r\n")
    assert read(tmp_path, tabbed).items == read(tmp_path, CONLL_2003).items


def test_words_keep_blanks_quotes_and_line_separators_between_tabs(tmp_path):
    words = ['"', "a b", "x\u2028y", "#tag", "\xa0", "I'm"]
    text = "".join(f"{word}\tO\n" for word in words) + "\t\n" + "last\tB-x y\n"
    found = pairs(read(tmp_path, text))
    assert found == [[(word, "O") for word in words], [("last", "B-x y")]]


def test_a_file_of_words_alone_has_no_tags(tmp_path):
    assert read(tmp_path, "EU\nrejects\n\nGerman\n").items == [
        TaggedWords(("EU", "rejects"), None, ""),
        TaggedWords(("German",), None, ""),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("word", f"{UNEQUAL}: 1 columns, 2 in the lines before"),
        ("two words O", f"{UNEQUAL}: 3 columns, 2 in the lines before"),
        ("word\t", "a word or a tag is empty: 'word\\t'"),
        ("word X-PER", f"{UNKNOWN_TAG}: 'X-PER'"),
        ("word PER", f"{UNKNOWN_TAG}: 'PER'"),
        ("word B-", f"{UNKNOWN_TAG}: 'B-'"),
        ("word o", f"{UNKNOWN_TAG}: 'o'"),
    ],
)
def test_a_line_without_word_or_tag_is_an_error_with_its_line_or_a_counted_skip(tmp_path, line, message):
    text = f"EU B-ORG\nends O\n\nhere O\n{line}\n\nPeter B-PER\n"
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert f"{tmp_path}/file.conll:5: {message}" in str(error.value)
    found = read(tmp_path, text, skip=True)
    assert pairs(found) == [[("EU", "B-ORG"), ("ends", "O")], [("Peter", "B-PER")]]
    assert found.skipped == {message.split(": ")[0]: 1}


def test_tags_that_write_no_entities_are_free(tmp_path):
    assert pairs(read(tmp_path, "EU NNP\nrejects VBZ\n")) == [[("EU", "NNP"), ("rejects", "VBZ")]]


def test_characters_of_weibo_lose_their_number(tmp_path):
    text = "口0\tO\n腔1\tO\n20\tB-GPE.NAM\n51\tI-GPE.NAM\n\n\ufffd\ufffd0\tO\n\U0001f6003\tO\n"
    assert pairs(read(tmp_path, text, "weibo")) == [
        [("口", "O"), ("腔", "O"), ("2", "B-GPE.NAM"), ("5", "I-GPE.NAM")],
        [("\ufffd\ufffd", "O"), ("\U0001f600", "O")],
    ]
    with pytest.raises(UserError, match=r"conll:2: a word is not a character and its number: '腔'"):
        read(tmp_path, "口0\tO\n腔\tO\n", "weibo")


def test_records_have_lists_of_words_and_tags(tmp_path):
    def lines(*records):
        return "".join(json.dumps(record) + "\n" for record in records)

    good = {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}
    bare = {"words": ["x"]}
    found = read(tmp_path, lines(good, bare), "tagged", name="file.jsonl")
    assert found.items == [TaggedWords(("EU", "rejects"), ("B-ORG", "O"), ""), TaggedWords(("x",), None, "")]
    for bad, message in (
        (good | {"ner_tags": ["O"]}, f"{UNEQUAL}: 2 and 1"),
        (good | {"ner_tags": [0, 1]}, "ner_tags is no text: 0"),
        (good | {"tokens": ["x", ""]}, "a word or a tag is empty"),
        (good | {"tokens": ["x", "\ud800"]}, "tokens holds a lone surrogate"),
        ({"ner_tags": []}, "no field 'words'"),
        ({"words": []}, r"words is no list of texts: \[\]"),
        (good | {"ner_tags": ["B-ORG", "Q-ORG"]}, f"{UNKNOWN_TAG}: 'Q-ORG'"),
    ):
        with pytest.raises(UserError, match=f"file.jsonl:2: {message}"):
            read(tmp_path, lines(good, bad), "tagged", name="file.jsonl")


def test_a_text_has_words_between_blanks_or_characters(tmp_path):
    text = " 在 北京,\u3000x\n"
    for form, expected in (("tagged", ("在", "北京,", "x")), ("characters", ("在", "北", "京", ",", "x"))):
        found = read(tmp_path, json.dumps({"text": text}) + "\n", form, name="file.jsonl")
        assert found.items == [TaggedWords(expected, None, "", text)]
    with pytest.raises(UserError, match=r"file.jsonl:1: words is no list of texts: \[\]"):
        read(tmp_path, json.dumps({"text": " \n"}), "characters", name="file.jsonl")


PUBLISHED = {  # form, sentences, words, scheme, entities as conlleval, entities strictly
    "wnut17/wnut17train.conll": ("conll", 3394, 62730, "BIO", 1975, 1975),
    "wnut17/emerging.dev.conll": ("conll", 1009, 15733, "BIO", 836, 836),
    "zh_weibo_ner/weiboNER_2nd_conll.train": ("weibo", 1350, 73778, "BIO", 1895, 1885),
    "zh_weibo_ner/weiboNER_2nd_conll.dev": ("weibo", 270, 14509, "BIO", 389, 389),
    "zh_resume_ner/train.char.bmes": ("conll", 2500, 81003, "BMES", 8846, 8842),
    "zh_resume_ner/dev.char.bmes": ("conll", 463, 13890, "BMES", 1497, 1497),
}


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_their_sentences_words_and_entities(shared_data, name):
    folder, file = name.split("/")
    form, *counts = PUBLISHED[name]
    found = read_examples(LabelledSettings(path=str(shared_data(folder) / file), form=form))
    tags = [each.tags for each in found.items]
    scheme = scheme_of(tags)
    entities = [sum(len(entities_of(each, way)) for each in tags) for way in ("", scheme)]
    assert [len(found), sum(len(each.words) for each in found.items), scheme, *entities] == counts
    assert found.skipped == {}
