"""Groups of sequences with a shared beginning: where it ends, which are read together, and the rows that are read."""

import numpy as np

from lmjax.evaluate.endings import Ending, Shape, arrays, batches, grouped


def group(beginning, *rests):
    """Of `beginning` ones, and after them each rest, of which all is asked for."""
    return grouped([Ending(np.array([1] * beginning + rest), len(rest)) for rest in rests])


def test_the_beginning_ends_before_the_token_that_predicts_the_first_that_is_asked_for():
    assert group(9, [2, 3], [2, 3, 4]).shared == 8
    assert group(1, [2], [3]).shared == 0
    assert group(9, [2, 3]).shared == 8


def test_the_beginning_ends_where_sequences_differ():
    own = grouped([Ending(np.array([1, 2, 3, 4, 5]), 1), Ending(np.array([1, 2, 9, 4, 5]), 1)])
    assert own.shared == 2


def test_lengths_are_rounded_up_by_at_most_a_step_of_32_or_an_eighth():
    for tokens in (2, 32, 33, 34, 255, 257, 700, 5000):
        shared, shape = group(tokens, [2]).shared, group(tokens, [2]).shape
        assert shared == tokens - 1
        assert 0 <= shape.beginning - shared <= max(32, shared // 8)
        assert (shape.sequences, shape.rest) == (1, 16)
    assert group(4, [2] * 16, [3] * 17).shape == Shape(32, 2, 32)


def test_a_batch_holds_groups_of_a_kind_and_no_more_tokens_than_it_may():
    groups = [group(40, [2], [3]), group(4, [2], [3]), group(5, [2] * 20, [3]), group(4, [2]), group(6, [2], [3])]
    assert list(batches(groups, 10_000)) == [
        (Shape(32, 1, 16), [3]),
        (Shape(32, 2, 32), [1, 4, 2]),
        (Shape(64, 2, 16), [0]),
    ]
    assert list(batches(groups, 2 * 2 * (32 + 16))) == [
        (Shape(32, 1, 16), [3]),
        (Shape(32, 2, 16), [1, 4]),
        (Shape(32, 2, 32), [2]),
        (Shape(64, 2, 16), [0]),
    ]


def test_a_beginning_is_padded_on_the_left_and_what_follows_on_the_right():
    own = grouped([Ending(np.array([7, 8, 9, 4, 5]), 2), Ending(np.array([7, 8, 9, 6]), 1)])
    first, then = arrays([own], Shape(3, 2, 4), rows=2)
    assert {name: rows.tolist() for name, rows in first.items()} == {
        "tokens": [[0, 7, 8], [0, 0, 0]],
        "positions": [[0, 0, 1], [0, 0, 0]],
        "segments": [[0, 1, 1], [0, 0, 0]],
    }
    assert {name: rows[0].tolist() for name, rows in then.items()} == {
        "tokens": [[9, 4, 0, 0], [9, 0, 0, 0]],
        "targets": [[4, 5, 0, 0], [6, 0, 0, 0]],
        "positions": [[2, 3, 0, 0], [2, 0, 0, 0]],
        "segments": [[1, 1, 0, 0], [1, 0, 0, 0]],
    }
    assert not any(rows[1].any() for rows in then.values())
