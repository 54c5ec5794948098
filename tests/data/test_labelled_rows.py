"""Labelled texts and choices as rows: which tokens, which example, which class; and batches of rows of any length."""

import numpy as np
import pytest

from lmjax.data.frames import decoder_frame, encoder_frame
from lmjax.data.labelled import Choices, Labelled
from lmjax.data.labelled_rows import (
    choice_rows,
    class_numbers,
    classes_of,
    require_labels,
    require_pairs,
    scores_of,
    single_rows,
    text_rows,
)
from lmjax.data.ragged_rows import RaggedRows, ragged_fields
from lmjax.errors import UserError
from lmjax.settings import RowSettings
from lmjax.tokenizers.tokenizer import load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
TOKENIZER = wordpiece(WORDS, lowercase=True)
FRAME = encoder_frame(TOKENIZER)


def spelled(rows):
    return ["".join(WORDS[index][:2].strip("[") for index in tokens) for tokens, _ in rows]


def labelled(*texts, label="x"):
    return Labelled(texts, label, "f:1")


def test_texts_and_pairs_are_framed_in_the_order_of_the_examples():
    rows = text_rows([labelled("a b"), labelled("c", "d e"), labelled("")], TOKENIZER, FRAME, 16)
    assert spelled(rows.texts) == ["CabS", "CcSdeS", "CS"]
    assert rows.texts[1][1].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.examples.tolist() == [0, 1, 2]


def test_a_long_text_has_windows_whose_examples_are_known():
    examples = [labelled("a"), labelled("a b c d e f g"), labelled("h")]
    rows = text_rows(examples, TOKENIZER, FRAME, 6, "windows", 2)
    assert spelled(rows.texts) == ["CaS", "CabcdS", "CcdefS", "CefgS", "ChS"]
    assert rows.examples.tolist() == [0, 1, 1, 1, 2]


def test_a_stride_that_would_leave_tokens_out_is_refused_by_its_field():
    with pytest.raises(UserError, match=r"^task\.stride = 5: expected 1 to 4, the tokens of a window"):
        text_rows([labelled("a b c d e f g")], TOKENIZER, FRAME, 6, "windows", 5)


def test_of_a_pair_the_longer_text_has_windows_and_the_other_one_is_in_each():
    examples = [labelled("a b", "c d e f g"), labelled("c d e f g", "a b"), labelled("a b c d e", "f g h i")]
    rows = text_rows(examples, TOKENIZER, FRAME, 8, "windows", 1)
    assert spelled(rows.texts) == [
        *("CabScdeS", "CabSdefS", "CabSefgS", "CcdeSabS", "CdefSabS", "CefgSabS"),
        *("CabcSfgS", "CbcdSfgS", "CcdeSfgS"),
    ]
    assert rows.examples.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.texts[3][1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_text_that_is_too_long_is_named_where_cutting_is_forbidden():
    with pytest.raises(UserError, match=r"^f:1: 3 tokens, expected at most 2 of rows\.sequence_length = 4"):
        text_rows([labelled("a"), labelled("a b c")], TOKENIZER, FRAME, 4, "error")


def test_each_option_is_a_row_with_its_context_and_examples_may_have_fewer():
    examples = [Choices("a b", ("c", "d e"), 0, "f:1"), Choices("f", ("g", "h", "i j"), 2, "f:2")]
    rows, table = choice_rows(examples, TOKENIZER, FRAME, 16)
    assert spelled(rows.texts) == ["CabScS", "CabSdeS", "CfSgS", "CfShS", "CfSijS"]
    assert table.tolist() == [[0, 1, -1], [2, 3, 4]] and rows.examples.tolist() == [0, 0, 1, 1, 1]


def test_each_text_is_a_row_of_its_own_with_a_frame_or_without():
    examples = [labelled("a b", "c"), labelled("d"), labelled("e", "f g h")]
    rows, table = single_rows(examples, TOKENIZER, FRAME, 4)
    assert spelled(rows.texts) == ["CabS", "CcS", "CdS", "CeS", "CfgS"]
    assert table.tolist() == [[0, 1], [2, -1], [3, 4]] and rows.examples.tolist() == [0, 0, 1, 2, 2]
    assert spelled(single_rows(examples, TOKENIZER, None, 2, "tail")[0].texts) == ["ab", "c", "d", "e", "gh"]


def test_an_example_without_a_label_or_a_second_text_is_named():
    with pytest.raises(UserError, match=r"^f:1: no label; expected one, to train or to evaluate"):
        require_labels([labelled("a"), labelled("a", label=None)])
    with pytest.raises(UserError, match=r"^f:1: one text, expected two"):
        require_pairs([labelled("a", "b"), labelled("a")])


def test_batches_are_padded_and_hold_what_belongs_to_each_example():
    rows = text_rows([labelled("a b"), labelled("c", "d"), labelled("e")], TOKENIZER, FRAME, 8)
    found = RaggedRows(rows.texts, 8, {"labels": np.array([5, 6, 7], np.int32)})
    batch = found.batch(np.array([2, 1]))
    assert (len(found), found.lengths.tolist()) == (3, [4, 5, 3])
    assert batch["tokens"].tolist() == [[2, 8, 3, 0, 0, 0, 0, 0], [2, 6, 3, 7, 3, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]
    assert batch["token_types"].tolist() == [[0] * 8, [0, 0, 0, 1, 1, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 0, 0]]
    assert batch["labels"].tolist() == [7, 6]
    spec = ragged_fields(RowSettings(sequence_length=8, batch_size=2), {"labels": "int32"})
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        name: (field.shape, field.dtype) for name, field in spec.items()
    }


def test_options_are_an_axis_of_a_batch_and_those_that_are_missing_are_padding():
    examples = [Choices("a b", ("c", "d e"), 0, "f:1"), Choices("f", ("g", "h", "i j"), 2, "f:2")]
    rows, table = choice_rows(examples, TOKENIZER, FRAME, 8)
    found = RaggedRows(rows.texts, 8, {}, options=table)
    batch = found.batch(np.array([0, 1]))
    assert batch["tokens"].shape == (2, 3, 8) and found.lengths.tolist() == [7, 6]
    assert batch["segments"].sum(axis=2).tolist() == [[6, 7, 0], [5, 5, 6]]
    assert (batch["tokens"][0, 2] == 0).all()
    folded = batch["tokens"].reshape(6, 8)
    assert (folded.reshape(2, 3, 8) == batch["tokens"]).all() and (folded[4] == batch["tokens"][1, 1]).all()
    spec = ragged_fields(RowSettings(sequence_length=8, batch_size=2), {}, options=3)
    assert {name: array.shape for name, array in batch.items()} == {name: each.shape for name, each in spec.items()}


def test_tokens_predict_the_next_ones_that_the_tokenizer_has():
    rows = text_rows([labelled("a b", "c")], TOKENIZER, decoder_frame(14), 8)
    batch = RaggedRows(rows.texts, 8, {}, entries=14).batch(np.array([0]))
    assert batch["tokens"].tolist() == [[14, 4, 5, 15, 6, 16, 0, 0]], "Start, a, b, Delimiter, c, Extract"
    assert batch["targets"].tolist() == [[4, 5, 0, 6, 0, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1, 0, 0, 0, 0]]
    spec = ragged_fields(RowSettings(sequence_length=8, batch_size=1), {}, language=True)
    assert {name: array.dtype.name for name, array in batch.items()} == {
        name: each.dtype for name, each in spec.items()
    }


def test_classes_of_one_number_have_one_order():
    """A set of texts has another order in each process."""
    written = ["1", "01", "001", "0001", "00001", "2"]
    assert classes_of([Labelled(("a",), label, "f:1") for label in written]) == (*written[4::-1], "2")


def test_classes_are_sorted_and_unknown_or_missing_ones_are_named_with_file_and_line():
    assert classes_of([labelled("a", label="10"), labelled("a", label="9"), labelled("a", label="10")]) == ("9", "10")
    assert classes_of([labelled("a", label="no"), labelled("a", label="10")]) == ("10", "no")
    assert class_numbers([labelled("a", label="no"), labelled("a", label="10")], ("10", "no")).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"^f:1: the label 'yes' is none of the training data's; known: 10, no"):
        class_numbers([labelled("a", label="yes")], ("10", "no"))
    with pytest.raises(UserError, match=r"^f:1: no label; expected the name of a class; name its column"):
        classes_of([labelled("a", label=None)])
    with pytest.raises(UserError, match=r"^f:1: the score 2\.5; expected the name of a class; set task\.scores"):
        class_numbers([labelled("a", label=2.5)], ("2.5",))


def test_scores_are_numbers_also_where_the_file_has_text():
    scores = scores_of([labelled("a", label=2.5), labelled("a", label="3")])
    assert scores.tolist() == [2.5, 3.0] and scores.dtype == np.float32
    for label in (None, "x", "nan"):
        with pytest.raises(
            UserError,
            match=r"^f:1: a score that is none, .*; name the column of the scores in label, or learn classes$",
        ):
            scores_of([labelled("a", label=label)])


@pytest.mark.data
def test_the_published_choices_fold_into_rows_and_back(shared_data):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    robes = ("are wearing colorful costumes.", "are doing karate moves on the floor.", "shake hands on their hips.")
    smirk = ("smiles and falls heavily.", "wears a bashful smile.", "kneels down behind her.")
    examples = [
        Choices("The people are in robes. They", (*robes, "do a flip to the bag."), 0, "f:1"),
        Choices("She smirks at someone and rides off. He", (*smirk, "gives him a playful glance."), 3, "f:2"),
    ]
    rows, table = choice_rows(examples, tokenizer, encoder_frame(tokenizer), 19)
    batch = RaggedRows(rows.texts, 19, {}, options=table).batch(np.array([0, 1]))
    assert batch["tokens"].shape == (2, 4, 19)
    assert batch["segments"].sum(axis=2).tolist() == [[15, 18, 16, 17], [18, 19, 19, 19]]
    folded = batch["tokens"].reshape(8, 19)
    for row, (tokens, _) in zip(folded, rows.texts, strict=True):
        assert row[: len(tokens)].tolist() == tokens.tolist()
    assert (folded.reshape(2, 4, 19) == batch["tokens"]).all()
