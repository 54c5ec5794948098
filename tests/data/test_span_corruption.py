"""Span corruption: nothing is lost, the lengths are those of T5's code, and the rows are full."""

import numpy as np
import pytest

from lmjax.data.draws import Stream
from lmjax.data.seq2seq_rows import START
from lmjax.data.span_corruption import (
    Counts,
    RowLengths,
    SpanRows,
    SpanVocabulary,
    noise_mask,
    partitions,
    span_vocabulary,
)
from lmjax.errors import FieldError, UserError
from lmjax.settings import SpanSettings, TokenizerSettings
from lmjax.settings.masking import sentinel_symbols
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.tokenizer import build_tokenizer

EOS = 256
SENTINELS = np.arange(999, 899, -1, dtype=np.int32)  # from the top of a vocabulary of 1,000
VOCABULARY = SpanVocabulary(SENTINELS, EOS)


def rows_of(shards, length=40, seed=0, *, whole_documents=False, keep_rest=False, **settings):
    options = {"whole_documents": whole_documents, "keep_rest": keep_rest}
    return SpanRows(shards, SpanSettings(**settings), VOCABULARY, length, Stream(seed), **options)


def all_of(rows, epoch=0):
    return rows.batch(np.arange(len(rows)), np.full(len(rows), epoch))


def examples(batch):
    """(row, inputs, what the decoder reads, targets) of every segment of every row, whose fields are checked."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            sides = []
            for names in (("inputs", "input_segments", "input_positions"), ("tokens", "segments", "positions")):
                here = np.flatnonzero(batch[names[1]][row] == segment)
                assert here.tolist() == list(range(here[0], here[-1] + 1))
                assert batch[names[2]][row][here].tolist() == list(range(len(here)))
                sides.append((here, batch[names[0]][row][here].tolist()))
            assert (batch["weights"][row][sides[1][0]] == 1).all()
            yield row, sides[0][1], sides[1][1], batch["targets"][row][sides[1][0]].tolist()


def restored(inputs, targets):
    """The text: the span behind each sentinel of the targets in place of that sentinel in the inputs."""
    assert inputs[-1] == targets[-1] == EOS
    spans, number = {}, -1
    for token in targets[:-1]:
        if token in SENTINELS:
            number += 1
            assert token == SENTINELS[number]
            spans[token] = []
        else:
            spans[token if token in SENTINELS else SENTINELS[number]].append(token)
    assert all(spans.values())
    assert [token for token in inputs if token in SENTINELS] == list(spans)
    return [one for token in inputs[:-1] for one in spans.get(token, [token])]


@pytest.mark.parametrize("settings", [{}, {"density": 0.5, "mean_length": 1.0}, {"density": 0.3, "mean_length": 7.5}])
def test_inputs_and_targets_give_the_text_back_always(make_shards, ragged_texts, settings):
    shards = make_shards(ragged_texts)
    flat = shards.windows(np.array([0]), shards.tokens)[0].tolist()
    rows = rows_of(shards, keep_rest=True, **settings)
    for epoch in range(3):
        texts = [restored(inputs, targets) for _, inputs, _, targets in examples(all_of(rows, epoch))]
        assert [token for text in texts for token in text] == flat[: len(flat) - rows.dropped_tokens]
        assert rows.dropped_tokens in (0, 1)


def test_every_document_is_given_back_where_documents_are_whole(make_shards, ragged_texts):
    shards = make_shards([*ragged_texts, "x" * 200])
    rows = rows_of(shards, whole_documents=True)
    found = sorted(restored(inputs, targets) for _, inputs, _, targets in examples(all_of(rows)))
    size, expected = rows.lengths.text, []
    for number in range(len(shards)):
        text = shards.document(number)[:-1].tolist()
        expected += [text[at : at + size] for at in range(0, len(text), size)]
    kept = sorted(text for text in expected if len(text) > 1)
    assert found == kept
    assert rows.dropped_tokens == len(expected) - len(kept)
    batch = all_of(rows)
    assert batch["segments"].max() > 2
    assert (batch["input_segments"] > 0).mean() > 0.8, "several documents share a row"


def test_decoders_read_each_target_behind_the_one_before(make_shards, ragged_texts):
    for whole in (False, True):
        batch = all_of(rows_of(make_shards(ragged_texts), whole_documents=whole))
        count = 0
        for _, _, read, targets in examples(batch):
            assert read == [START, *targets[:-1]]
            count += 1
        assert count >= len(batch["tokens"])
        padding = batch["segments"] == 0
        for name in ("tokens", "targets", "weights", "positions"):
            assert not batch[name][padding].any()


def helper(inputs_length, density, mean):
    """random_spans_helper of t5/data/preprocessors.py, written from its definition."""

    def lengths(text):
        noise = round(text * density)
        spans = round(noise / mean)
        return text - noise + spans + 1, noise + spans + 1

    text = inputs_length - 1
    while lengths(text + 1)[0] <= inputs_length:
        text += 1
    inputs, targets = lengths(text)
    if density == 0.5 and targets > inputs:
        text, targets = text - 1, targets - 1
    return text, targets


def test_lengths_are_those_of_the_released_code():
    assert RowLengths.of(512, SpanSettings()) == (568, 512, 114)
    for length in (64, 128, 256, 512, 1024):
        for density, mean in ((0.15, 3.0), (0.15, 2.0), (0.1, 5.0), (0.25, 3.0), (0.5, 3.0), (0.5, 10.0)):
            text, _, targets = RowLengths.of(length, SpanSettings(density=density, mean_length=mean))
            assert (text, targets) == helper(length, density, mean)


@pytest.mark.parametrize("settings", [{}, {"density": 0.3, "mean_length": 5.0}])
def test_every_row_is_full(make_shards, settings):
    rows = rows_of(make_shards(["abcdefghij" * 100], shard_tokens=500), 64, **settings)
    batch = all_of(rows)
    assert len(rows) == 1001 // rows.lengths.text
    assert rows.dropped_tokens == 1001 % rows.lengths.text
    assert batch["inputs"].shape[1] == 64 and batch["targets"].shape[1] == rows.lengths.targets
    for name in ("input_segments", "segments", "weights"):
        assert (batch[name] == 1).all()


def test_density_and_mean_span_are_those_asked_for():
    lengths, settings = np.full(400, 568), SpanSettings()
    draws = [np.random.default_rng(seed).random((400, 568)) for seed in (0, 1)]
    noise = noise_mask((draws[0], draws[1]), lengths, Counts.of(lengths, settings))
    spans = (noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]).sum(axis=1)
    assert (noise.sum(axis=1) == 85).all() and (spans == 28).all()  # 15% of 568, in spans of three
    assert not noise[:, 0].any() and noise[:, -1].all()
    share = noise[:, 50:-50].mean(axis=0)
    assert np.abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 400), "everywhere alike, but near the ends"


def test_every_partition_is_as_likely():
    draws = np.random.default_rng(0).random((30_000, 8))
    ends = partitions(draws, np.full(30_000, 5), np.full(30_000, 3))
    found, counts = np.unique(ends, axis=0, return_counts=True)
    assert found.tolist() == [[a, b, 5] for a in range(1, 4) for b in range(a + 1, 5)]
    assert ((counts - 5000) ** 2 / 5000).sum() < 25.7  # chi squared of 5 degrees, one in 10,000


def test_spans_depend_on_row_epoch_and_seed_and_not_on_the_rows_beside(make_shards, ragged_texts):
    for whole in (False, True):
        rows = rows_of(make_shards(ragged_texts), whole_documents=whole)
        later = all_of(rows, 2)
        for name, array in rows.batch(np.array([4, 1]), np.array([2, 2])).items():
            np.testing.assert_array_equal(array, later[name][[4, 1]])
        differ = (all_of(rows, 0)["inputs"] != later["inputs"]).any(axis=1)
        assert differ.mean() > (0.3 if whole else 0.9)  # a short document has one span, at its end
    one, other = rows_of(make_shards(ragged_texts)), rows_of(make_shards(ragged_texts), seed=1)
    assert (all_of(one)["inputs"] != all_of(other)["inputs"]).any(axis=1).mean() > 0.9
    static = rows_of(make_shards(ragged_texts), corruptions=1)
    np.testing.assert_array_equal(all_of(static, 0)["inputs"], all_of(static, 5)["inputs"])


def test_texts_of_two_and_three_tokens_lose_one(make_shards):
    batch = all_of(rows_of(make_shards(["ab", "cde", "f"]), whole_documents=True))
    found = sorted((inputs, targets) for _, inputs, _, targets in examples(batch))
    first = int(SENTINELS[0])
    assert found == [([97, first, EOS], [first, 98, EOS]), ([99, 100, first, EOS], [first, 101, EOS])]


def test_too_little_text_too_few_sentinels_and_short_rows_are_refused(make_shards):
    shards = make_shards(["abcdefgh"])
    with pytest.raises(UserError, match="9 tokens are less than the 44 of a row"):
        rows_of(shards)
    with pytest.raises(FieldError, match="rows of at most 1 spans, the tokenizer's sentinels, not 2"):
        SpanRows(shards, SpanSettings(), SpanVocabulary(SENTINELS[:1], EOS), 40, Stream(0))
    with pytest.raises(FieldError, match="3 or more for spans"):
        rows_of(shards, 2)


TEXTS = ["some text with some words and some more words " * 5]


def test_sentinels_are_the_tokens_with_their_names_and_those_of_a_trained_vocabulary_are_at_its_top():
    settings = TokenizerSettings(kind="bpe", vocab_size=280, user_symbols=sentinel_symbols(7))
    tokenizer = build_tokenizer(settings, TEXTS)
    vocabulary = span_vocabulary(tokenizer)
    assert vocabulary.sentinels.tolist() == [279, 278, 277, 276, 275, 274, 273]
    assert tokenizer.decode([279]) == "<extra_id_0>"
    assert vocabulary.eos == tokenizer.eos_id
    pieces = TokenizerSettings(kind="sentencepiece", vocab_size=283, user_symbols=sentinel_symbols(7))
    tokenizer = build_tokenizer(pieces, TEXTS)
    assert [tokenizer.decode([index]) for index in span_vocabulary(tokenizer).sentinels] == [
        f"<extra_id_{number}>" for number in range(7)
    ]
    with pytest.raises(UserError, match=r"the byte tokenizer has no token <extra_id_0>.*sentinel_symbols"):
        span_vocabulary(ByteTokenizer())
