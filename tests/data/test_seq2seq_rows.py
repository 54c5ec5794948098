"""Examples of inputs and targets in rows: each whole, with one segment on both sides, and rows that are well filled."""

import numpy as np
import pytest

from lmjax.data.seq2seq_rows import START, ExampleRows, plan_examples, seq2seq_fields
from lmjax.data.token_strings import TokenStrings


def random_examples(count, most_inputs, most_targets, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, [most_inputs + 1, most_targets + 1], (count, 2))
    inputs, targets = ([rng.integers(5, 999, n) for n in column] for column in lengths.T)
    return inputs, targets


def segments_of(batch, row, tokens, segments):
    numbers = batch[segments][row]
    return [batch[tokens][row][numbers == number].tolist() for number in range(1, numbers.max() + 1)]


def test_every_example_is_in_one_row_with_one_segment_on_both_sides():
    inputs, targets = random_examples(300, 20, 9)
    rows = ExampleRows(TokenStrings.of(inputs), TokenStrings.of(targets), (32, 16))
    batch = rows.batch(np.arange(len(rows)))
    found = []
    for row in range(len(rows)):
        read = segments_of(batch, row, "inputs", "input_segments")
        written = segments_of(batch, row, "targets", "segments")
        found += zip(map(tuple, read), map(tuple, written), strict=True)
        for decoder, target in zip(segments_of(batch, row, "tokens", "segments"), written, strict=True):
            assert decoder == [START, *target[:-1]]
    assert sorted(found) == sorted((tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(inputs, targets, strict=True))
    for segments, others in (
        ("input_segments", ("inputs", "input_positions")),
        ("segments", ("tokens", "targets", "weights", "positions")),
    ):
        padding = batch[segments] == 0
        assert padding.any() and not any(batch[name][padding].any() for name in others)
    assert batch["weights"].sum() == sum(map(len, targets))
    spec = seq2seq_fields(len(rows), (32, 16))
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (field.shape, np.dtype(field.dtype)) for name, field in spec.items()
    }


def test_a_row_does_not_depend_on_the_rows_beside_it():
    inputs, targets = random_examples(50, 20, 9)
    rows = ExampleRows(TokenStrings.of(inputs), TokenStrings.of(targets), (32, 16))
    together = rows.batch(np.arange(len(rows)))
    for name, array in rows.batch(np.array([3, 0])).items():
        np.testing.assert_array_equal(array, together[name][[3, 0]])


@pytest.mark.parametrize("room", [(64, 64), (64, 10), (24, 32)])
def test_rows_hold_no_more_than_their_room_and_are_well_filled(room):
    sizes = np.random.default_rng(1).integers(1, [20, 10], (3000, 2))
    plan = plan_examples(sizes, room)
    assert sorted(plan.order.tolist()) == list(range(3000))
    sums = np.add.reduceat(sizes[plan.order], plan.first[:-1], axis=0)
    assert (sums <= room).all()
    assert (sums / np.array(room)).max(axis=1).mean() > 0.95
    assert (np.diff(plan.first) > 0).all()
    for row in range(len(plan.first) - 1):
        here = plan.order[plan.first[row] : plan.first[row + 1]].tolist()
        assert here == sorted(here)
