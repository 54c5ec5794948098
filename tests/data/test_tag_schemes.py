"""Tags to entities: every scheme as conlleval reads it, and strictly; the scheme that tags are in."""

import itertools

import pytest

from lmjax.data.tag_schemes import Entity, entities_of, scheme_of, split_tag


def read(tags, scheme=""):
    return [(entity.kind, entity.begin, entity.end) for entity in entities_of(tags.split(), scheme)]


@pytest.mark.parametrize(
    ("words", "tags", "entities"),
    [
        ("我 在 北京 工作", "O O B-LOC O", ["北京"]),
        ("我 在 北 京 工 作", "O O B-LOC I-LOC O O", ["北京"]),
        ("新疆 乌鲁木齐 市", "B-LOC I-LOC I-LOC", ["新疆乌鲁木齐市"]),
        ("新疆 乌鲁木齐 市", "B-LOC B-LOC I-LOC", ["新疆", "乌鲁木齐市"]),
        ("新疆 乌鲁木齐 市", "B-LOC M-LOC E-LOC", ["新疆乌鲁木齐市"]),
        ("新疆 和 北 京", "S-LOC O B-LOC E-LOC", ["新疆", "北京"]),
    ],
)
def test_entities_are_the_words_that_the_tags_join(words, tags, entities):
    found = entities_of(tags.split())
    assert ["".join(words.split()[entity.begin : entity.end]) for entity in found] == entities
    assert found == entities_of(tags.split(), scheme_of([tags.split()]))  # these are strict, too
    assert {entity.kind for entity in found} == {"LOC"}


@pytest.mark.parametrize(
    ("tags", "scheme", "lenient", "strict"),
    [
        ("I-PER I-PER O", "BIO", [("PER", 0, 2)], []),  # an I without a B
        ("B-PER I-LOC I-LOC", "BIO", [("PER", 0, 1), ("LOC", 1, 3)], [("PER", 0, 1)]),  # behind another kind
        ("B-PER O I-PER", "BIO", [("PER", 0, 1), ("PER", 2, 3)], [("PER", 0, 1)]),
        ("B-PER B-PER I-PER", "BIO", [("PER", 0, 1), ("PER", 1, 3)], [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER B-PER I-LOC", "IOB1", [("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)], None),
        ("B-PER I-PER O", "BIOES", [("PER", 0, 2)], []),  # a B without its E
        ("B-PER I-PER E-PER S-PER", "BIOES", [("PER", 0, 3), ("PER", 3, 4)], [("PER", 0, 3), ("PER", 3, 4)]),
        ("B-PER E-LOC", "BIOES", [("PER", 0, 1), ("LOC", 1, 2)], []),
        ("B-PER B-PER E-PER I-PER", "BIOES", [("PER", 0, 1), ("PER", 1, 3), ("PER", 3, 4)], [("PER", 1, 3)]),
        ("B-PER M-PER M-PER E-PER E-PER", "BMES", [("PER", 0, 4), ("PER", 4, 5)], [("PER", 0, 4)]),
        ("B-PER E-PER B-PER E-PER", "BMES", [("PER", 0, 2), ("PER", 2, 4)], [("PER", 0, 2), ("PER", 2, 4)]),
    ],
)
def test_a_tag_out_of_place_begins_an_entity_for_conlleval_and_none_strictly(tags, scheme, lenient, strict):
    assert read(tags) == lenient
    assert read(tags, scheme) == (lenient if strict is None else strict)


def by_definition(tags):
    """conlleval's entities by its definition: spans that begin at a start and end before an end or another start."""
    parts = [split_tag(tag) for tag in tags]
    before = [("O", ""), *parts]

    def starts(place):
        (p, kind), (q, other) = parts[place], before[place]
        return p != "O" and (p in "BS" or q in "OES" or kind != other)

    spans = itertools.combinations(range(len(tags) + 1), 2)
    return {
        Entity(parts[a][1], a, b)
        for a, b in spans
        if starts(a)
        and all(parts[at][0] != "O" and not starts(at) for at in range(a + 1, b))
        and (b == len(tags) or parts[b][0] == "O" or starts(b))
    }


def test_all_sequences_of_four_tags_are_read_by_the_definition():
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("X", "Y-Z"))]
    for sequence in itertools.product(tags, repeat=4):
        assert set(entities_of(sequence)) == by_definition(sequence), sequence


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["O B-PER I-PER", "O"], "BIO"),
        (["B-PER B-LOC"], "BIO"),
        (["I-PER I-PER O I-LOC B-LOC"], "IOB1"),
        (["I-PER O", "B-PER O"], "BIO"),  # an error of a BIO file: its B stands where IOB1 has none
        (["B-PER I-PER E-PER"], "BIOES"),
        (["S-PER O"], "BIOES"),
        (["B-PER M-PER E-PER S-LOC"], "BMES"),
        (["NN VBZ O"], ""),
        (["O O"], ""),
    ],
)
def test_the_scheme_is_told_by_the_tags(sentences, scheme):
    assert scheme_of([tags.split() for tags in sentences]) == scheme


def test_a_kind_is_all_that_follows_the_first_hyphen():
    assert split_tag("B-creative-work") == ("B", "creative-work")
    assert [split_tag(tag) for tag in ("O", "NN", "X-PER", "B-", "I")] == [("O", "")] * 5
