"""The loader: a pure function of the step; permutations, mixtures, the batch-size ramp, validation and prefetch."""

import threading
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lmjax.data.batch import LANGUAGE_FIELDS
from lmjax.data.loader import Loader, RowLoader, validation_batches
from lmjax.data.mixture import LONGEST_PERIOD, Mixture
from lmjax.data.permutation import Shuffle
from lmjax.data.prefetch import prefetch
from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.settings import DataSettings

MODES = [{}, {"isolate_documents": True}, {"packing": "first_fit"}]


def settings(**changes):
    return DataSettings(**({"sequence_length": 16, "batch_size": 6, "seed": 3} | changes))


def assert_same(left, right):
    for name in LANGUAGE_FIELDS:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def row_keys(batch):
    return [tuple(row.tolist()) for row in batch["tokens"]]


@pytest.fixture
def two_sources(make_shards, ragged_texts):
    return [make_shards(ragged_texts), make_shards([text.upper() for text in ragged_texts[:25]])]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_the_same_for_fresh_loaders_in_any_order(two_sources, mode):
    ramp = {"ramp_from": 2, "ramp_tokens": 500, "ramp_sizes": 3}
    first = Loader(two_sources, [0.7, 0.3], settings(**mode, **ramp))
    steps = [0, 1, 5, 40, 12_345]
    batches = {step: first.batch_at(step) for step in steps}
    for step in reversed(steps):
        assert_same(Loader(two_sources, [0.7, 0.3], settings(**mode, **ramp)).batch_at(step), batches[step])
        assert len(batches[step]["tokens"]) == first.batch_size_at(step)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_rows_of_all_processes_make_up_the_batch(two_sources, mode, processes):
    loader = Loader(two_sources, [0.7, 0.3], settings(**mode))
    share = 6 // processes
    for step in (0, 17, 1000):
        parts = [loader.batch_at(step, slice(p * share, (p + 1) * share)) for p in range(processes)]
        assert_same(
            {name: np.concatenate([part[name] for part in parts]) for name in LANGUAGE_FIELDS}, loader.batch_at(step)
        )


def test_rows_that_select_nothing_are_refused(two_sources):
    with pytest.raises(ValueError, match="none of the 6 rows of step 4"):
        Loader(two_sources, [1, 1], settings()).batch_at(4, slice(6, 8))


@pytest.mark.parametrize("mode", MODES)
def test_every_row_comes_once_per_epoch_and_epochs_differ(make_shards, ragged_texts, mode):
    loader = Loader([make_shards(ragged_texts)], [1.0], settings(batch_size=1, **mode))
    rows = loader.rows_per_epoch[0]
    ordered = Loader([make_shards(ragged_texts)], [1.0], settings(batch_size=1, shuffle=False, **mode))
    in_order = [row_keys(ordered.batch_at(step))[0] for step in range(rows)]
    epochs = [[row_keys(loader.batch_at(e * rows + step))[0] for step in range(rows)] for e in range(3)]
    assert all(Counter(epoch) == Counter(in_order) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != in_order


def test_the_seed_changes_the_order(make_shards, ragged_texts):
    shards = [make_shards(ragged_texts)]
    batches = [row_keys(Loader(shards, [1.0], settings(seed=seed)).batch_at(0)) for seed in (0, 1)]
    assert batches[0] != batches[1]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 97, 1000, 4099])
def test_the_shuffle_is_a_bijection_in_every_epoch_of_every_source(size):
    shuffle = Shuffle([size, size], seed=9)
    orders = []
    for source in (0, 1):
        for epoch in (0, 1):
            full = np.full(size, 1)
            orders.append(tuple(shuffle.images(full * source, full * epoch, np.arange(size)).tolist()))
            assert sorted(orders[-1]) == list(range(size))
    assert size < 10 or len(set(orders)) == 4


def test_the_shuffle_works_for_sizes_beyond_32_bits():
    size = 10**13 + 7
    indices = np.arange(0, size, size // 1000)
    images = Shuffle([size], 0).images(np.zeros_like(indices), np.zeros_like(indices), indices)
    assert len(set(images.tolist())) == len(indices) and 0 <= images.min() <= images.max() < size
    assert abs(images.mean() / size - 0.5) < 0.05


def test_the_shuffle_looks_random():
    size, epochs = 50, 4000
    shuffle = Shuffle([size], 1)
    indices = np.tile(np.arange(size), epochs)
    images = shuffle.images(np.zeros_like(indices), np.repeat(np.arange(epochs), size), indices)
    counts = np.zeros((size, size))
    np.add.at(counts, (indices, images), 1)
    expected = epochs / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
    neighbours = np.diff(images.reshape(epochs, size), axis=1)
    assert abs((neighbours == 1).mean() - 1 / size) < 0.002


GPT3_WEIGHTS = [0.60, 0.22, 0.08, 0.08, 0.03]  # Brown et al. 2020, Table 2.2


@pytest.mark.parametrize("weights", [[1], [1, 1], GPT3_WEIGHTS, [0.999, 0.001], [5, 3, 3, 3, 1, 1, 1, 1, 1], [1] * 7])
def test_the_realised_mixture_is_always_within_one_row_of_the_weights(weights):
    rows = 5000
    mixture = Mixture(weights)
    sources, ordinals = mixture.assign(np.arange(rows))
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, rows + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - shares).max() < 1.0 + 1e-9
    for source in range(len(weights)):
        np.testing.assert_array_equal(ordinals[sources == source], np.arange(counts[-1, source]))
    for row in (0, 1, 77, 4999):
        assert mixture.counts(row) == np.bincount(sources[:row], minlength=len(weights)).tolist()


def test_weights_without_a_short_period_are_kept_to_one_part_in_65536():
    weights = [0.123456789, 0.2, 1 / 3]
    mixture = Mixture(weights)
    assert mixture.period == LONGEST_PERIOD
    counts = np.array(mixture.counts(10**9))
    assert np.abs(counts / 1e9 - np.array(weights) / sum(weights)).max() < 1 / LONGEST_PERIOD


def test_a_weight_too_small_to_be_ever_read_is_an_error():
    with pytest.raises(UserError, match=r"data\.train\[1\]\.weight = 1e-07"):
        Mixture([1.0, 1e-7])


def test_mixed_rows_come_from_their_sources_and_the_realised_epochs_are_reported(two_sources):
    loader = Loader(two_sources, [0.7, 0.3], settings())
    upper = lower = 0
    for step in range(20):
        for row in loader.batch_at(step)["tokens"]:
            letters = [chr(token) for token in row.tolist() if token < 128]
            upper += all(letter.isupper() for letter in letters)
            lower += all(letter.islower() for letter in letters)
    assert upper + lower == 120
    assert abs(lower - 0.7 * 120) <= 1
    assert loader.epochs_at(20) == [lower / loader.rows_per_epoch[0], upper / loader.rows_per_epoch[1]]
    assert loader.epochs_at(0) == [0.0, 0.0]


def test_each_source_of_a_mixture_keeps_its_own_epochs(two_sources):
    loader = Loader(two_sources, [0.5, 0.5], settings(batch_size=2))
    small = loader.rows_per_epoch[1]
    seen = [key for step in range(small) for key in row_keys(loader.batch_at(step)) if any(65 <= t <= 90 for t in key)]
    assert len(seen) == len(set(seen)) == small


def test_sources_of_two_tokenizers_are_refused(make_shards):
    shards = [make_shards(["a" * 50], fingerprint="one"), make_shards(["b" * 50], fingerprint="two")]
    with pytest.raises(UserError, match="made with tokenizer two"):
        Loader(shards, [1, 1], settings())
    with pytest.raises(UserError, match="made with tokenizer two"):
        validation_batches(shards, settings(), 2)


def test_the_ramp_is_linear_in_few_sizes_and_counts_tokens(make_shards, ragged_texts):
    ramp = settings(batch_size=32, ramp_from=8, ramp_tokens=16 * 480, ramp_sizes=4)
    loader = Loader([make_shards(ragged_texts)], [1.0], ramp)
    table = BatchRamp(ramp).table
    assert table.batch_sizes == (8, 16, 24, 32)
    assert table.first_steps == (0, 20, 30, 37)  # 160 rows at 8, 160 at 16, and 7 x 24 = 168 at 24
    assert table.tokens_before == (0, 16 * 160, 16 * 320, 16 * 488)
    seen = 0
    for step in range(60):
        assert loader.tokens_at(step) == seen
        size = loader.batch_size_at(step)
        assert loader.batch_at(step)["tokens"].shape == (size, 16)
        seen += size * 16
    assert loader.tokens_at(10**12) == table.tokens_before[-1] + (10**12 - 37) * 32 * 16


def test_rows_go_on_through_the_ramp_without_gap_or_repetition(make_shards, ragged_texts):
    ramped = Loader(
        [make_shards(ragged_texts)], [1.0], settings(batch_size=7, ramp_from=2, ramp_tokens=300, ramp_sizes=3)
    )
    flat = Loader([make_shards(ragged_texts)], [1.0], settings(batch_size=1))
    keys = [key for step in range(12) for key in row_keys(ramped.batch_at(step))]
    assert keys == [row_keys(flat.batch_at(row))[0] for row in range(len(keys))]


@pytest.mark.parametrize(
    ("start", "full", "count", "sizes"),
    [
        (None, 8, 4, (8,)),
        (2, 8, 1, (8,)),
        (8, 8, 4, (8,)),
        (32, 1024, 5, (32, 288, 512, 768, 1024)),
        (4, 10, 9, (4, 8, 10)),
    ],
)
def test_ramp_sizes_are_multiples_of_the_first_one(start, full, count, sizes):
    tokens = 100_000 if start else 0
    ramp = settings(batch_size=full, ramp_from=start, ramp_tokens=tokens, ramp_sizes=count)
    assert BatchRamp(ramp).table.batch_sizes == sizes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_validation_scores_every_target_once_in_order(two_sources, mode, batch_size):
    batches = validation_batches(two_sources, settings(**mode), batch_size)
    fields = {name: np.concatenate([batch[name] for batch in batches]) for name in LANGUAGE_FIELDS}
    assert len(fields["tokens"]) == len(batches) * batch_size
    on = fields["weights"] > 0
    found = Counter(zip(fields["tokens"][on].tolist(), fields["targets"][on].tolist(), strict=True))
    expected = Counter()
    for shards in two_sources:
        flat = shards.windows(np.array([0]), shards.tokens)[0].tolist()
        documents = [flat] if mode == {} else [shards.document(i).tolist() for i in range(len(shards))]
        for document in documents:
            expected.update(pairwise(document))
    assert found == expected
    assert not any(array[fields["segments"] == 0].any() for array in fields.values())


@pytest.mark.parametrize("mode", MODES)
def test_validation_rows_of_all_processes_make_up_the_batch_even_where_one_has_only_padding(two_sources, mode):
    batches = validation_batches(two_sources, settings(**mode), 400)
    last = len(batches) - 1
    parts = [batches.batch_at(last, slice(p * 100, (p + 1) * 100)) for p in range(4)]
    assert not parts[-1]["weights"].any()
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in LANGUAGE_FIELDS}, batches[last])


def test_a_validation_set_shorter_than_one_window_names_its_source(make_shards):
    with pytest.raises(UserError, match=r"source embedded train .*sequence_length = 16"):
        validation_batches([make_shards(["short"])], settings(), 2)


def test_validation_batches_end(two_sources):
    batches = validation_batches(two_sources, settings(), 4)
    with pytest.raises(IndexError):
        batches[len(batches)]
    assert len(list(batches)) == len(batches)


def test_prefetch_yields_in_order_and_runs_ahead_no_further_than_its_depth():
    started = []

    def produce(step):
        started.append(step)
        return step * step

    values = prefetch(produce, 3, 30, depth=4)
    for expected in range(3, 30):
        step, value, waited = next(values)
        assert (step, value) == (expected, expected * expected) and waited >= 0.0
        time.sleep(0.001)
        assert max(started) <= min(29, step + 4)
    assert list(values) == [] and sorted(started) == list(range(3, 30))


def test_prefetch_hides_the_work_and_measures_the_wait():
    slow = [waited for _, _, waited in prefetch(lambda step: time.sleep(0.03), 0, 4, depth=1)]
    assert sum(slow) > 0.08
    hidden = []
    for _, _, waited in prefetch(lambda step: time.sleep(0.03), 0, 6, depth=2):
        hidden.append(waited)
        time.sleep(0.06)
    assert sum(hidden[1:]) < 0.5 * 5 * 0.03


def test_an_exception_in_the_background_is_raised_at_its_step():
    def produce(step):
        if step == 2:
            raise UserError("shard 7 is damaged")
        return step

    seen = []
    with pytest.raises(UserError, match="shard 7"):
        for step, _, _ in prefetch(produce, 0, 10, depth=3):
            seen.append(step)
    assert seen == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_leaving_the_loop_early_stops_the_threads():
    for step, _, _ in prefetch(lambda step: time.sleep(0.005), 0, 1000, depth=5):
        if step == 3:
            break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_what_rows_draw_is_another_in_each_epoch_and_the_same_for_a_step(two_sources):
    class Drawn:
        dropped_tokens = 0

        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def batch(self, indices, epochs=None):
            return {"tokens": np.stack([indices, epochs], axis=1)}

    loader = RowLoader([Drawn(4), Drawn(2)], [2.0, 1.0], settings(shuffle=False))
    batches = [loader.batch_at(step)["tokens"].tolist() for step in range(3)]
    assert [sorted(map(tuple, batch)) for batch in batches] == [
        sorted([(index, step) for index in range(4)] + [(index, step) for index in range(2)]) for step in range(3)
    ]
    assert loader.batch_at(2, slice(1, 3))["tokens"].tolist() == batches[2][1:3]
