"""Losses of spans and tags are sums: parts of a batch, padding rows and further columns of padding change nothing."""

import jax
import numpy as np
import pytest

from lmjax.data.frames import encoder_frame
from lmjax.data.labelled import Question, TaggedWords
from lmjax.data.question_windows import question_rows
from lmjax.data.tagged_rows import tagged_rows
from lmjax.model.families import model_of
from lmjax.model.heads import TaskModel
from lmjax.settings import AttentionSettings, LabelledSettings, ModelSettings, PositionSettings
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.tags import Tags
from lmjax.tokenizers.wordpiece import wordpiece

TOKENIZER = wordpiece(["[UNK]", "[CLS]", "[SEP]", *"abcde"], lowercase=True)
FRAME = encoder_frame(TOKENIZER)
SETTINGS = ModelSettings(
    layers=1,
    width=16,
    context=16,
    vocab_size=8,
    attention=AttentionSettings(heads=2, causal=False),
    positions=PositionSettings(segment_types=2),
)
SOURCE = (LabelledSettings(path="none"),)


def tags():
    sizes = (1, 12, 2, 7, 30, 1)  # very unequal; the longest has several windows
    words = [tuple("abcde"[(size + place) % 5] for place in range(size)) for size in sizes]
    sentences = [TaggedWords(each, tuple("OXY"[ord(word) % 3] for word in each), "") for each in words]
    rows = tagged_rows(sentences, TOKENIZER, FRAME, ("O", "X", "Y"), 14, 5)
    return Tags(train=SOURCE, labels=("O", "X", "Y")), rows, 3


def questions():
    passages = ("a b c d e " * 6, "b", "c d e", "a b")
    answers = (("c d", 14), ("b", 0), None, None)
    made = [
        Question(str(number), "a", passage, (answer,) if answer else (), number == 2, "", "")
        for number, (passage, answer) in enumerate(zip(passages, answers, strict=True))
    ]
    return QuestionAnswering(train=SOURCE), question_rows(made, TOKENIZER, FRAME, 14, 5, question_length=2), 2


@pytest.mark.parametrize("make", [tags, questions])
def test_a_loss_is_the_sum_over_the_parts_of_a_batch_whatever_its_padding(make):
    task, rows, outputs = make()
    model = TaskModel(model_of(SETTINGS), outputs, "tokens")
    params = model.init(jax.random.key(0))
    read = jax.jit(lambda batch: task.loss(model, None)(params, batch, None)[0])
    whole = rows.batch(np.arange(8))
    length = whole["tokens"].shape[1]

    def padded(batch, size):
        """The batch with rows of padding and two further columns of it."""
        widths = {name: 2 * (array.shape[-1] == length) for name, array in batch.items()}
        return {
            name: np.pad(
                array, [(0, size - len(array)), *[(0, 0)] * (array.ndim - 2), *[(0, widths[name])] * (array.ndim > 1)]
            )
            for name, array in batch.items()
        }

    expected = read(padded(whole, 8))
    assert float(expected.weight) > 3
    parts = [{name: array[first:last] for name, array in whole.items()} for first, last in ((0, 1), (1, 3), (3, 8))]
    found = [read(padded(part, 8)) for part in parts]
    assert len({float(part.sum / part.weight) for part in found}) == 3  # a mean of means would differ
    assert sum(float(part.weight) for part in found) == float(expected.weight)
    assert sum(float(part.sum) for part in found) == pytest.approx(float(expected.sum), rel=1e-5)
    narrow = read(whole)
    assert float(narrow.sum) == pytest.approx(float(expected.sum), rel=1e-5)
