"""Dialogue from the embedded corpus: the same for one installation, split like the corpus, and read as records."""

import pytest

from lmjax.data.conversation_files import read_records
from lmjax.data.openings import WORDS, openings
from lmjax.errors import UserError
from lmjax.settings import SFT, DialogueSettings, DialogueSourceSettings


@pytest.fixture(scope="module")
def pairs():
    return openings("train")


def test_an_opening_and_its_rest_are_one_plain_sentence(pairs):
    assert len(pairs) > 5000
    assert all(len(opening.split()) == WORDS for opening, _ in pairs)
    assert all(opening[0].isupper() and rest.endswith(".") and rest.count(".") == 1 for opening, rest in pairs)


def test_no_opening_comes_twice(pairs):
    assert len({opening for opening, _ in pairs}) == len(pairs)


def test_a_source_reads_its_part_of_them_as_demonstrations_or_prompts(pairs):
    source = DialogueSourceSettings(kind="embedded", begin=0.5, end=0.6)
    half, end = round(len(pairs) * 0.5), round(len(pairs) * 0.6)
    found = read_records(source, "demonstration").records
    assert [(r.turns[0].text, r.turns[1].text) for r in found] == [*pairs[half:end]]
    asked = read_records(source, "prompt").records
    assert [r.turns[0].text for r in asked] == [opening for opening, _ in pairs[half:end]]


def test_a_path_beside_the_embedded_corpus_is_read_and_a_file_has_one():
    assert DialogueSourceSettings("a.jsonl", kind="embedded") == DialogueSourceSettings("a.jsonl")
    with pytest.raises(
        UserError, match=r"^DialogueSourceSettings\.split = 'validation': expected its default, 'train'"
    ):
        DialogueSourceSettings("a.jsonl", kind="embedded", split="validation")
    with pytest.raises(UserError, match=r"^DialogueSourceSettings\.path = '': .*; set path"):
        DialogueSourceSettings()
    stage = SFT(start="base", dialogue=DialogueSettings(train=(DialogueSourceSettings(kind="embedded"),)))
    assert stage.sources() == {"start": "base"}
