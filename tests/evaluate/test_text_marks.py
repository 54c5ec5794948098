"""Marks of written answers against values that were worked out by hand."""

import pytest

from lmjax.evaluate.text_marks import longest_common, mark_number, mark_overlap, mark_squad, normalised


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [
        ("The Chicago Bears.", ["Chicago Bears"], 1, 1),
        ("March 1941", ["1941", "march, 1941"], 1, 1),
        ("bears", ["the Chicago Bears"], 0, 2 / 3),  # 1 of 1 and of 2 words
        ("in March, 1941", ["March 1941", "1941"], 0, 0.8),  # 2 of 3 and of 2 words; the second reference gives 1 / 2
        ("March 1941 March", ["March March March 1941"], 0, 6 / 7),  # words are counted: 3 of 3 and of 4
        ("a the", ["an"], 1, 1),  # a reference without a word left is none
        ("x", ["the", "y x"], 0, 2 / 3),
        ("", ["x"], 0, 0),
        ("4,000", ["4000"], 1, 1),
        ("", [], 1, 1),
        ("Unanswerable.", [], 1, 1),
        ("Unanswerable.", ["x"], 0, 0),
        ("something", [], 0, 0),
    ],
)
def test_squad_is_marked_as_its_script_does(text, references, exact, f1):
    assert mark_squad(text, references) == {"exact": exact, "f1": pytest.approx(f1)}


def test_words_are_compared_without_case_punctuation_and_articles():
    assert normalised(" The  U.S.-led an-a\tTHEATRE, a b") == ["usled", "ana", "theatre", "b"]


@pytest.mark.parametrize(
    ("text", "reference", "exact", "last"),
    [
        ("so 2+2=4\n#### 4", "4", 1, 1),
        ("#### 1,080", "1080", 1, 1),
        ("#### $1080.00 in all", "1,080", 1, 1),
        ("#### 4.5", "4", 0, 0),
        ("#### -4", "4", 0, 0),
        ("it is 3, or 4.", "4", 0, 1),
        ("#### four, or 4", "4", 0, 1),
        ("#### 4 and 5", "4", 1, 0),
        ("#### 5 #### 4", "4", 1, 1),
        ("none", "4", 0, 0),
        ("", "4", 0, 0),
    ],
)
def test_a_number_is_right_after_the_marks_or_as_the_last_one(text, reference, exact, last):
    assert mark_number(text, (reference,)) == {"exact": exact, "last_number": last}


def test_an_overlap_counts_words_and_those_in_order():
    """4 words each, of which 4 are common and 2 in order (Lin 2004, section 3.1)."""
    found = mark_overlap("the gunman kill police", ("Police kill the gunman!", "nothing"))
    assert found == {"rouge_1": 1.0, "rouge_l": pytest.approx(0.5)}
    assert mark_overlap("police killed the gunman", ("police kill the gunman",)) == {"rouge_1": 0.75, "rouge_l": 0.75}
    assert mark_overlap("d'été à Noël", ("D'ÉTÉ, à Noël.",)) == {"rouge_1": 1.0, "rouge_l": 1.0}
    assert mark_overlap("", ("x",)) == {"rouge_1": 0.0, "rouge_l": 0.0}


def test_the_longest_common_sequence_skips_words_of_both():
    assert longest_common("ABCBDAB", "BDCABA") == 4
    assert longest_common("", "a") == longest_common("a", "") == 0
