"""Precision, recall and F1 of entities against the outputs of conlleval and seqeval on stored predictions."""

import pytest

from lmjax.evaluate.entities import EntityCounts, entity_counts, entity_metrics, tag_record

# Right tags and predicted ones. conlleval.pl of 2004-01-26 says of them:
#   processed 72 tokens with 53 phrases; found: 54 phrases; correct: 34.
#   accuracy:  66.67%; precision:  62.96%; recall:  64.15%; FB1:  63.55
#              LOC-x: precision:  71.43%; recall:  68.97%; FB1:  70.18  28
#                PER: precision:  53.85%; recall:  58.33%; FB1:  56.00  26
# and seqeval 1.2.2, strictly as IOB2: 0.6111, 0.5946, 0.6027.
STORED = (
    ("B-LOC-x B-LOC-x I-LOC-x O I-PER B-PER", "B-PER B-LOC-x I-PER O I-PER B-PER"),
    ("B-PER I-PER B-PER O", "B-PER B-PER B-PER B-PER"),
    ("B-PER B-LOC-x B-LOC-x", "I-LOC-x B-LOC-x B-PER"),
    ("O B-LOC-x I-PER B-PER", "B-LOC-x B-LOC-x I-LOC-x B-PER"),
    (
        "B-LOC-x O B-LOC-x B-LOC-x B-LOC-x I-PER B-LOC-x",
        "B-LOC-x O B-LOC-x B-LOC-x B-LOC-x I-PER B-LOC-x",
    ),
    ("O I-PER O B-PER I-LOC-x B-PER", "O I-PER I-PER B-PER B-LOC-x B-PER"),
    ("B-LOC-x B-LOC-x O I-PER O B-PER B-LOC-x", "B-LOC-x B-LOC-x O I-PER O B-LOC-x B-PER"),
    ("B-PER O O I-LOC-x I-LOC-x", "O B-LOC-x O I-LOC-x I-LOC-x"),
    ("O I-PER B-LOC-x B-PER B-PER I-LOC-x B-PER", "I-PER I-PER B-LOC-x B-PER B-PER I-LOC-x I-LOC-x"),
    ("I-PER I-PER B-LOC-x I-PER B-LOC-x B-LOC-x", "I-PER O I-LOC-x I-PER B-LOC-x B-LOC-x"),
    ("I-LOC-x I-LOC-x B-LOC-x O B-LOC-x I-LOC-x", "B-LOC-x I-LOC-x I-PER B-LOC-x I-LOC-x I-LOC-x"),
    ("B-LOC-x B-LOC-x I-PER B-LOC-x", "B-LOC-x B-LOC-x I-PER I-PER"),
    ("I-PER B-LOC-x B-LOC-x", "I-PER B-LOC-x B-LOC-x"),
    ("I-PER B-LOC-x O I-PER", "I-PER I-LOC-x O I-PER"),
)
GOLD, FOUND = ([tags.split() for tags in column] for column in zip(*STORED, strict=True))


def test_stored_predictions_count_as_conlleval_prints_them():
    total, kinds = entity_counts(GOLD, FOUND)
    assert (total.gold, total.found, total.right) == (53, 54, 34)
    assert list(kinds) == ["LOC-x", "PER"]
    numbers = {
        kind: [round(100 * x, 2) for x in (c.precision, c.recall, c.f1)] + [c.found] for kind, c in kinds.items()
    }
    assert numbers == {"LOC-x": [71.43, 68.97, 70.18, 28], "PER": [53.85, 58.33, 56.00, 26]}


def test_an_evaluation_has_conllevals_numbers_and_the_strict_ones():
    assert {name: round(value, 4) for name, value in entity_metrics(GOLD, FOUND).items()} == {
        "accuracy": 0.6667,
        "precision": 0.6296,
        "recall": 0.6415,
        "f1": 0.6355,
        "f1_LOC-x": 0.7018,
        "f1_PER": 0.56,
        "strict_precision": 0.6111,
        "strict_recall": 0.5946,
        "strict_f1": 0.6027,
    }


def test_an_entity_of_the_right_words_and_another_kind_is_wrong_for_both_kinds():
    total, kinds = entity_counts([["B-PER", "I-PER", "O"]], [["B-LOC", "I-LOC", "O"]])
    assert total == EntityCounts(1, 1, 0)
    assert kinds == {"LOC": EntityCounts(0, 1, 0), "PER": EntityCounts(1, 0, 0)}
    assert [(c.precision, c.recall, c.f1) for c in kinds.values()] == [(0.0, 0.0, 0.0)] * 2


def test_an_entity_stays_in_its_sentence():
    assert entity_counts([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]])[0] == EntityCounts(2, 1, 1)


def test_tags_without_entities_have_an_accuracy_alone():
    assert entity_metrics([["NN", "VBZ"]], [["NN", "NN"]]) == {"accuracy": 0.5}


def test_a_sentence_with_another_number_of_tags_is_no_prediction():
    with pytest.raises(ValueError, match="1 tags of a sentence of 2 words"):
        entity_counts([["O", "O"]], [["O"]])


def test_a_record_has_entities_by_characters_of_the_text_and_by_words():
    tags, shares = ["O", "B-LOC", "I-LOC", "B-PER"], [0.9, 0.5, 0.75, 1.0]
    record = tag_record(["in", "New", "York", "Ann"], tags, shares)
    assert record["text"] == "in New York Ann"
    york = {"kind": "LOC", "text": "New York", "begin": 3, "end": 11, "words": [1, 3], "probability": 0.625}
    ann = {"kind": "PER", "text": "Ann", "begin": 12, "end": 15, "words": [3, 4], "probability": 1.0}
    assert record["entities"] == [york, ann]
    text = " in New\u00a0 York, Ann"
    placed = tag_record(["in", "New", "York,", "Ann"], tags, shares, text)
    assert [text[each["begin"] : each["end"]] for each in placed["entities"]] == ["New\u00a0 York,", "Ann"]
    characters = tag_record(list("在北京"), ["O", "B-LOC", "I-LOC"], [1.0] * 3, between="")
    assert characters["text"] == "在北京"
    assert [(each["text"], each["begin"], each["end"]) for each in characters["entities"]] == [("北京", 1, 3)]
