"""Rows in buckets: a step's bucket and rows are a pure function of it, and an epoch reads every row once."""

import numpy as np
import pytest

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Field
from lmjax.data.buckets import BucketLoader, Buckets, cut_columns, evaluation_batches
from lmjax.data.ragged_rows import RaggedRows
from lmjax.errors import UserError
from lmjax.settings import DataSettings

T, SIZE = 32, 4
FIELDS = {name: Field((SIZE, T)) for name in (TOKENS, POSITIONS, SEGMENTS, "token_types")} | {"number": Field((SIZE,))}


def rows(count, seed=0, first=0):
    """Texts whose tokens are all the number of the row, from 1."""
    lengths = np.random.default_rng(seed).integers(1, T + 1, count)
    texts = [(np.full(n, first + i + 1, np.int32), np.zeros(n, np.int32)) for i, n in enumerate(lengths)]
    return RaggedRows(texts, T, {"number": first + 1 + np.arange(count, dtype=np.int32)})


def loader(*sources, shuffle=True, edges=(8, 16), **settings):
    return BucketLoader(
        sources, DataSettings(sequence_length=T, batch_size=SIZE, shuffle=shuffle, **settings), edges, FIELDS
    )


def test_an_epoch_reads_every_row_once_and_each_in_the_least_bucket_that_holds_it():
    sources = rows(37), rows(11, seed=1, first=37)
    lengths = np.concatenate([each.lengths for each in sources])
    made = loader(*sources)
    for epoch in range(3):
        seen = []
        for step in range(epoch * made.batches_per_epoch, (epoch + 1) * made.batches_per_epoch):
            batch = made.batch_at(step)
            columns = batch[TOKENS].shape[1]
            assert columns == made.length_at(step)
            assert {name: array.shape for name, array in batch.items()} == {
                name: (SIZE, columns) if len(field.shape) > 1 else (SIZE,) for name, field in FIELDS.items()
            }
            real = batch["number"] > 0
            assert (batch[SEGMENTS].any(1) == real).all()
            for number, tokens, segments in zip(batch["number"], batch[TOKENS], batch[SEGMENTS], strict=True):
                if number:
                    length = lengths[number - 1]
                    assert columns == next(edge for edge in (8, 16, T) if length <= edge)
                    assert (tokens[:length] == number).all() and not tokens[length:].any()
                    assert segments.sum() == length
            seen += batch["number"][real].tolist()
        assert sorted(seen) == list(range(1, 49))


def test_a_batch_is_the_same_whenever_and_by_whomever_it_is_read():
    made, again = loader(rows(37)), loader(rows(37))
    for step in (23, 2, 11, 40):
        whole = made.batch_at(step)
        parts = [again.batch_at(step, slice(first, first + 1)) for first in range(SIZE)]
        for name, array in whole.items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in parts]))


def test_epochs_differ_in_order_and_seeds_do_too():
    made, other = loader(rows(37)), loader(rows(37), seed=5)

    def order(of, epoch):
        steps = range(epoch * of.batches_per_epoch, (epoch + 1) * of.batches_per_epoch)
        return [tuple(of.batch_at(step)["number"]) for step in steps]

    assert order(made, 0) != order(made, 1)
    assert order(made, 0) != order(other, 0)
    still = loader(rows(37), shuffle=False)
    assert order(still, 0) == order(still, 1)


def test_tokens_and_padding_are_those_of_the_batches():
    made = loader(rows(37))
    tokens = real = 0
    for step in range(2 * made.batches_per_epoch):
        assert made.tokens_at(step) == tokens
        batch = made.batch_at(step)
        tokens, real = tokens + batch[TOKENS].size, real + int(batch[SEGMENTS].sum())
    assert made.padding == pytest.approx(1 - real / tokens)
    assert loader(rows(37), edges=()).padding > made.padding
    assert f"{made.padding:.1%}" in made.described()
    assert made.epochs_at(made.batches_per_epoch * 2) == [2.0]


def test_an_evaluation_reads_every_row_once_with_padding_behind_them():
    own = rows(23)
    numbers, seen = [], []
    for chosen, batch in evaluation_batches(own, (8, 16), T, SIZE, FIELDS):
        assert batch["number"][: len(chosen)].tolist() == (chosen + 1).tolist()
        assert not batch["number"][len(chosen) :].any() and not batch[SEGMENTS][len(chosen) :].any()
        numbers += chosen.tolist()
        seen.append(batch[TOKENS].shape[1])
    assert sorted(numbers) == list(range(23))
    assert set(seen) <= {8, 16, T} and seen == sorted(seen)


def test_fields_of_other_shapes_keep_their_columns():
    fields = {TOKENS: Field((2, 3, T)), "spans": Field((2, 2)), "labels": Field((2,))}
    batch = {name: np.zeros(field.shape, np.int32) for name, field in fields.items()}
    assert [array.shape for array in cut_columns(batch, fields, 8).values()] == [(2, 3, 8), (2, 2), (2,)]


def test_rows_longer_than_the_last_bucket_are_in_it_and_empty_buckets_have_no_batch():
    buckets = Buckets(np.array([1, 2, 40]), (8, 16), T, 2)
    assert buckets.edges.tolist() == [8, 16, T]
    assert buckets.batches.tolist() == [1, 0, 1]
    assert [buckets.place(number) for number in range(2)] == [(0, 0), (2, 0)]


def test_batches_whose_sizes_changed_between_two_runs_are_refused():
    with pytest.raises(UserError, match=r"rows\.earlier_batches.*\[10\].*restore batch_size"):
        loader(rows(9), earlier_batches=((10, 8, T, 0, 0, 1),))
