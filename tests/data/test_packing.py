"""Packing: every target once, segments and positions that isolate documents, and no weight where there is no target."""

import time
from itertools import pairwise

import numpy as np
import pytest

from lmjax.data.batch import LANGUAGE_FIELDS
from lmjax.data.first_fit import plan_rows
from lmjax.data.packing import pack
from lmjax.errors import UserError
from lmjax.settings import DataSettings


def settings(length, **changes):
    return DataSettings(sequence_length=length, **changes)


def whole(rows):
    return rows.batch(np.arange(len(rows)))


def scored(batch):
    """(token, target) pairs with weight, in order."""
    on = batch["weights"] > 0
    return list(zip(batch["tokens"][on].tolist(), batch["targets"][on].tolist(), strict=True))


def pairs_within(document):
    return list(zip(document[:-1].tolist(), document[1:].tolist(), strict=True))


@pytest.fixture(params=["split", "isolated", "first_fit"])
def mode(request):
    return {"split": {}, "isolated": {"isolate_documents": True}, "first_fit": {"packing": "first_fit"}}[request.param]


def test_fields_have_the_documented_shapes_and_types(make_shards, ragged_texts, mode):
    batch = pack(make_shards(ragged_texts), settings(16, **mode), keep_rest=True).batch(np.array([2, 0, 1]))
    assert set(batch) == set(LANGUAGE_FIELDS)
    assert {array.shape for array in batch.values()} == {(3, 16)}
    types = {name: array.dtype for name, array in batch.items()}
    assert types == {name: np.float32 if name == "weights" else np.int32 for name in LANGUAGE_FIELDS}
    assert all(array.flags.c_contiguous for array in batch.values())


def test_a_row_does_not_depend_on_the_rows_beside_it(make_shards, ragged_texts, mode):
    rows = pack(make_shards(ragged_texts), settings(16, **mode), keep_rest=True)
    together = whole(rows)
    for index in (0, 3, len(rows) - 1):
        alone = rows.batch(np.array([index]))
        for name in LANGUAGE_FIELDS:
            np.testing.assert_array_equal(alone[name][0], together[name][index])


def test_padding_is_all_zeros(make_shards, ragged_texts, mode):
    batch = whole(pack(make_shards(ragged_texts), settings(16, **mode), keep_rest=True))
    padding = batch["segments"] == 0
    assert padding.any()
    assert not any(array[padding].any() for array in batch.values())


def test_split_predicts_every_token_but_the_first_once(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    flat = shards.windows(np.array([0]), shards.tokens)[0]
    batch = whole(pack(shards, settings(16), keep_rest=True))
    assert scored(batch) == pairs_within(flat)
    assert set(np.unique(batch["segments"])) == {0, 1}


def test_training_drops_the_last_partial_row_and_counts_it(make_shards):
    shards = make_shards(["abcdefghijklm"])  # 14 tokens, 13 targets
    rows = pack(shards, settings(5), keep_rest=False)
    assert (len(rows), rows.dropped_tokens) == (2, 3)
    assert len(scored(whole(rows))) == 10
    assert (
        len(pack(shards, settings(5), keep_rest=True)),
        pack(shards, settings(5), keep_rest=True).dropped_tokens,
    ) == (3, 0)
    assert pack(make_shards(["abcdefghij"]), settings(5), keep_rest=False).dropped_tokens == 0  # 10 targets, 2 rows


def test_isolated_rows_restart_positions_and_drop_the_target_across_a_boundary(make_shards):
    batch = whole(pack(make_shards(["ab", "cde", "f"]), settings(4, isolate_documents=True), keep_rest=True))
    a, b, c, d, e, f, end = *b"abcdef", 256
    assert batch["tokens"].tolist() == [[a, b, end, c], [d, e, end, f]]
    assert batch["targets"].tolist() == [[b, end, c, d], [e, end, f, end]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1], [1, 1, 0, 1]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2], [1, 1, 1, 2]]


@pytest.mark.parametrize("length", [1, 7, 64])
def test_isolated_rows_score_every_token_but_the_first_of_each_document(make_shards, ragged_texts, length):
    shards = make_shards(ragged_texts)
    batch = whole(pack(shards, settings(length, isolate_documents=True), keep_rest=True))
    assert scored(batch) == [pair for i in range(len(shards)) for pair in pairs_within(shards.document(i))]


def test_isolated_segments_follow_documents_even_where_text_holds_the_end_token(make_shards, byte_encoder, tmp_path):
    byte_encoder.eos_id = ord("|")
    from lmjax.data.sources import MemoryDocuments
    from lmjax.data.write_shards import prepare_shards

    shards = prepare_shards(MemoryDocuments(["a|b", "cd"]), byte_encoder, tmp_path / "s", fingerprint="bytes")
    batch = whole(pack(shards, settings(6, isolate_documents=True), keep_rest=True))
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 2, 2]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1, 1]]


def test_isolated_rows_agree_with_a_plain_loop(make_shards, ragged_texts):
    shards = make_shards(ragged_texts)
    first = set(shards.document_bounds().tolist())
    batch = whole(pack(shards, settings(11, isolate_documents=True), keep_rest=False))
    for row in range(len(batch["tokens"])):
        segment, position = 1, -1
        for t in range(11):
            at = row * 11 + t
            segment, position = (segment + 1, 0) if at in first and t > 0 else (segment, position + 1)
            found = tuple(batch[name][row, t] for name in ("segments", "positions", "weights"))
            assert found == (segment, position, at + 1 not in first)


@pytest.mark.parametrize("length", [1, 5, 16, 41, 500])
def test_first_fit_reconstructs_every_document(make_shards, ragged_texts, length):
    shards = make_shards(ragged_texts)
    rows = pack(shards, settings(length, packing="first_fit"), keep_rest=False)
    batch = whole(rows)
    found = []
    for row in range(len(rows)):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            tokens, targets = batch["tokens"][row][here], batch["targets"][row][here]
            assert batch["positions"][row][here].tolist() == list(range(here.sum()))
            assert batch["weights"][row][here].all()
            assert tokens[1:].tolist() == targets[:-1].tolist()
            found.append((*tokens.tolist(), int(targets[-1])))
    expected = []
    for document in map(shards.document, range(len(shards))):
        starts = range(0, len(document) - 1, length)
        expected += [tuple(document[start : start + length + 1].tolist()) for start in starts]
    assert sorted(found) == sorted(expected)
    assert rows.plan.lengths.sum() == (batch["segments"] > 0).sum()


def slow_first_fit_decreasing(lengths, capacity):
    """The rows of first-fit decreasing, one piece at a time."""
    rooms, rows = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(rooms) if room >= lengths[index]), len(rooms))
        if row == len(rooms):
            rooms.append(capacity)
            rows.append([])
        rooms[row] -= lengths[index]
        rows[row].append(index)
    return [sorted(row) for row in rows]


@pytest.mark.parametrize(("capacity", "longest"), [(20, 20), (64, 64), (64, 9), (100, 60), (7, 1)])
def test_the_plan_is_first_fit_decreasing(capacity, longest):
    lengths = np.random.default_rng(capacity).integers(1, longest + 1, 400)
    bounds = np.concatenate([[0], np.cumsum(lengths + 1)])
    plan = plan_rows(bounds, capacity)
    place = {start: index for index, start in enumerate(bounds[:-1].tolist())}
    cuts = plan.first_piece.tolist()
    rows = [[place[start] for start in plan.starts[a:b].tolist()] for a, b in pairwise(cuts)]
    assert rows == slow_first_fit_decreasing(lengths.tolist(), capacity)


def test_a_million_documents_are_planned_in_seconds():
    lengths = np.random.default_rng(0).lognormal(5.5, 1.2, 1_000_000).astype(np.int64) + 2
    started = time.process_time()
    plan = plan_rows(np.concatenate([[0], np.cumsum(lengths)]), 2048)
    assert time.process_time() - started < 5.0
    assert plan.lengths.sum(dtype=np.int64) == lengths.sum() - len(lengths)
    assert plan.lengths.sum(dtype=np.int64) / ((len(plan.first_piece) - 1) * 2048) > 0.99


def test_a_source_shorter_than_one_row_is_named(make_shards, mode):
    shards = make_shards(["abc"])
    with pytest.raises(UserError, match=r"source embedded train \(.*shards0\): 4 tokens are shorter than one row"):
        pack(shards, settings(4, **mode), keep_rest=True)
    assert len(pack(shards, settings(3, **mode), keep_rest=True)) == 1


def test_parts_of_shards_are_packed_like_shards_of_their_own(make_shards, ragged_texts, mode):
    part = pack(make_shards(ragged_texts).part(0.5, 1.0), settings(16, **mode), keep_rest=True)
    own = pack(make_shards(ragged_texts[30:]), settings(16, **mode), keep_rest=True)
    for name in LANGUAGE_FIELDS:
        np.testing.assert_array_equal(whole(part)[name], whole(own)[name])
