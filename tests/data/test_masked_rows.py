"""Masking: which tokens are selected, what stands in their places, and that a row's draws are its own."""

import numpy as np
import pytest

from lmjax.data.array_rows import ArrayRows
from lmjax.data.draws import Stream, below
from lmjax.data.masked_rows import FirstTokenRows, MaskedRows, MaskVocabulary, mask_vocabulary, word_starts
from lmjax.data.packing import pack
from lmjax.data.sentences import sentence_marks
from lmjax.errors import FieldError, UserError
from lmjax.settings import DataSettings, MaskingSettings, TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.wordpiece import train_wordpiece

CLS, SEP, MASK, ENTRIES = 1, 2, 3, 1000
SPECIAL = (0, CLS, SEP, MASK)


def plain_rows(rows, length, real=None, seed=0):
    """Rows [CLS] ... [SEP] of ids from 4 on, of `real` tokens each, then padding."""
    tokens = np.random.default_rng(seed).integers(4, ENTRIES, (rows, length)).astype(np.int32)
    real = np.full(rows, length) if real is None else np.asarray(real)
    columns = np.arange(length)
    segments = (columns < real[:, None]).astype(np.int32)
    tokens[:, 0] = CLS
    tokens[np.arange(rows), real - 1] = SEP
    positions = np.where(segments > 0, columns, 0).astype(np.int32)
    return ArrayRows({"tokens": tokens * segments, "segments": segments, "positions": positions})


def masked(rows, length, starts=None, seed=0, source=0, **settings):
    vocabulary = MaskVocabulary(ENTRIES, MASK, SPECIAL, starts)
    return MaskedRows(rows, MaskingSettings(**settings), vocabulary, length, Stream(seed, source))


def all_of(rows, epoch=0):
    indices = np.arange(len(rows))
    return rows.batch(indices, np.full(len(rows), epoch))


def chosen(batch):
    """(row, column, token that was there, token that is read) of each selected token."""
    rows, places = np.nonzero(batch["predicted_weights"])
    columns = batch["predicted"][rows, places]
    return rows, columns, batch["predicted_targets"][rows, places], batch["tokens"][rows, columns]


def test_what_is_predicted_gives_the_original_row_back():
    rows = plain_rows(50, 64, np.arange(10, 60))
    before, after = all_of(rows), all_of(masked(rows, 64))
    at, columns, targets, _ = chosen(after)
    restored = after["tokens"].copy()
    restored[at, columns] = targets
    np.testing.assert_array_equal(restored, before["tokens"])
    np.testing.assert_array_equal(after["segments"], before["segments"])
    assert set(after) == {
        *("tokens", "segments", "positions"),
        *("predicted", "predicted_targets", "predicted_weights"),
    }
    assert {name: array.dtype for name, array in after.items() if name.startswith("predicted")} == {
        "predicted": np.int32,
        "predicted_targets": np.int32,
        "predicted_weights": np.float32,
    }
    unused = after["predicted_weights"] == 0
    assert unused.any() and not after["predicted"][unused].any() and not after["predicted_targets"][unused].any()


def test_over_100_000_selections_80_are_masked_10_random_and_10_kept_and_random_ones_are_of_the_whole_vocabulary():
    rows = masked(plain_rows(5300, 128), 128)
    _, _, targets, read = chosen(all_of(rows))
    count = len(targets)
    assert count >= 100_000
    entry = 0.1 / ENTRIES  # a random entry that is [MASK], or the token itself
    expected = {"masked": 0.8 + entry, "kept": 0.1 + entry, "random": 0.1 - 2 * entry}
    found = {"masked": (read == MASK).mean(), "kept": (read == targets).mean()}
    found["random"] = 1 - found["masked"] - found["kept"]
    for name, share in expected.items():
        assert abs(found[name] - share) < 3 * np.sqrt(share * (1 - share) / count), name
    random = read[(read != MASK) & (read != targets)]
    assert {0, 1, 2} <= set(random.tolist()), "special entries, too"
    counts = np.bincount(random, minlength=ENTRIES)
    assert counts[ENTRIES - 1] > 0 and random.max() == ENTRIES - 1
    deviation = np.sqrt(len(random) / ENTRIES)
    assert abs(counts[4:].mean() - len(random) / ENTRIES) < 3 * deviation / np.sqrt(ENTRIES)
    assert counts.max() < len(random) / ENTRIES + 6 * deviation


def test_special_tokens_and_padding_are_never_selected():
    rows = masked(plain_rows(2000, 16, np.random.default_rng(1).integers(3, 17, 2000)), 16, share=0.9, most=16)
    _, columns, targets, _ = chosen(all_of(rows))
    assert len(targets) > 5000
    assert not np.isin(targets, SPECIAL).any()
    assert columns.min() == 1, "the first token behind [CLS] is one of those that are"


@pytest.mark.parametrize(
    ("length", "real", "share", "most", "expected"),
    [
        (128, 128, 0.15, None, 19),  # as BERT rounds: 19.2
        (128, 128, 0.15, 7, 7),  # at most so many
        (128, 10, 0.15, None, 2),  # 1.5 to the even neighbour, as Python rounds
        (128, 4, 0.15, None, 1),  # at least one
        (128, 128, 0.3, None, 38),
        (128, 3, 0.9, None, 1),  # of three tokens two are special
        (128, 2, 0.9, None, 0),  # both are
    ],
)
def test_a_row_has_its_share_of_predicted_tokens(length, real, share, most, expected):
    rows = masked(plain_rows(20, length, [real] * 20), length, share=share, most=most)
    assert all_of(rows)["predicted_weights"].sum(axis=1).tolist() == [expected] * 20


def test_a_row_of_128_has_20_columns_for_what_is_predicted():
    assert MaskingSettings().columns(128) == 20
    assert all_of(masked(plain_rows(2, 128), 128))["predicted"].shape == (2, 20)


def test_every_column_is_selected_equally_often():
    counts = np.bincount(chosen(all_of(masked(plain_rows(20_000, 22), 22)))[1], minlength=22)
    expected = 20_000 * 3 / 20
    assert counts[[0, 21]].tolist() == [0, 0]
    assert np.abs(counts[1:21] - expected).max() < 4 * np.sqrt(expected)


def test_masks_depend_on_row_epoch_seed_and_source_and_not_on_the_rows_beside():
    rows = plain_rows(40, 64)
    one = masked(rows, 64)
    together = all_of(one, 3)
    alone = one.batch(np.array([7, 2]), np.array([3, 3]))
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together[name][[7, 2]])
    same = [masked(rows, 64), masked(rows, 64)]
    np.testing.assert_array_equal(all_of(same[0], 5)["predicted"], all_of(same[1], 5)["predicted"])
    others = [all_of(one, 4), all_of(masked(rows, 64, seed=1), 3), all_of(masked(rows, 64, source=1), 3)]
    for other in others:
        assert (other["predicted"] != together["predicted"]).mean() > 0.9


def test_static_maskings_repeat_and_fresh_ones_do_not():
    rows = plain_rows(40, 64)
    static, three, fresh = masked(rows, 64, maskings=1), masked(rows, 64, maskings=3), masked(rows, 64)
    np.testing.assert_array_equal(all_of(static, 0)["tokens"], all_of(static, 9)["tokens"])
    np.testing.assert_array_equal(all_of(three, 1)["tokens"], all_of(three, 4)["tokens"])
    assert (all_of(three, 0)["predicted"] != all_of(three, 2)["predicted"]).any()
    assert (all_of(fresh, 0)["predicted"] != all_of(fresh, 9)["predicted"]).any()
    np.testing.assert_array_equal(
        fresh.batch(np.arange(40))["tokens"], all_of(fresh, 0)["tokens"], "without epochs, as in validation: the first"
    )


def test_whole_words_are_selected_whole_or_not_at_all():
    rows, length = plain_rows(300, 64, np.random.default_rng(2).integers(20, 65, 300)), 64
    starts = np.arange(ENTRIES) % 3 == 0  # two of three entries continue a word
    before = all_of(rows)["tokens"]
    after = all_of(masked(rows, length, starts, whole_words=True))
    selected = np.zeros(before.shape, bool)
    at, columns, _, _ = chosen(after)
    selected[at, columns] = True
    real = before > SEP
    split = 0
    for row in range(len(before)):
        words, column = [], 0
        while column < length:
            if not real[row, column]:
                column += 1
                continue
            stop = column + 1
            while stop < length and real[row, stop] and not starts[before[row, stop]]:
                stop += 1
            words.append((column, stop))
            column = stop
        for begin, stop in words:
            assert len(set(selected[row, begin:stop].tolist())) == 1
            split += selected[row, begin] and stop - begin > 1
        wanted = max(1, round(0.15 * (before[row] > 0).sum()))
        shortest = min((stop - begin for begin, stop in words if not selected[row, begin]), default=99)
        assert wanted - shortest < selected[row].sum() <= wanted, "no word that still fits is left out"
    assert split > 100


def test_a_word_does_not_reach_into_the_next_segment(make_shards):
    shards = make_shards(["ab", "cd", "ef", "gh"] * 5)
    rows = pack(shards, DataSettings(sequence_length=12, isolate_documents=True), keep_rest=False)
    vocabulary = MaskVocabulary(257, 0, (256,), np.zeros(257, bool))  # every letter continues a word
    words = MaskedRows(rows, MaskingSettings(share=0.2, whole_words=True), vocabulary, 12, Stream(0))
    batch = words.batch(np.arange(len(rows)))
    assert batch["predicted_weights"].sum(axis=1).tolist() == [2] * len(rows)
    both = batch["predicted"][:, :2]
    assert (both[:, 1] == both[:, 0] + 1).all(), "a document of two letters is one word"


def test_full_rows_of_text_begin_with_their_own_first_token_and_have_no_padding(make_shards):
    shards = make_shards(["abcd", "efghij", "klm"] * 4)
    rows = FirstTokenRows(pack(shards, DataSettings(sequence_length=7), keep_rest=False), 300)
    batch = rows.batch(np.arange(len(rows)))
    flat = shards.windows(np.array([0]), 7 * len(rows))[0].reshape(-1, 7)
    assert batch["tokens"][:, 0].tolist() == [300] * len(rows)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], flat)
    assert batch["positions"].tolist() == [list(range(8))] * len(rows)
    assert (batch["segments"] == 1).all()
    isolated = DataSettings(sequence_length=7, isolate_documents=True)
    batch = FirstTokenRows(pack(shards, isolated, keep_rest=False), 300).batch(np.array([0]))
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 1, 2, 2]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]]


def test_draws_are_uniform_and_a_prefix_of_longer_draws():
    stream, rows = Stream(5, 1, "x"), np.arange(200)
    draws = stream.uniform(rows, np.full(200, 7), 500)
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * draws.size)
    counts = np.bincount(below(draws, 10).ravel(), minlength=10)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 33.7  # chi squared of 9 degrees, one in 10,000
    np.testing.assert_array_equal(stream.uniform(rows, np.full(200, 7), 3), draws[:, :3])
    assert abs(np.corrcoef(draws[:, 0], stream.uniform(rows, np.full(200, 8), 1)[:, 0])[0, 1]) < 0.3
    assert below(np.array([np.nextafter(1, 0)]), 7).tolist() == [6]


@pytest.fixture(scope="module")
def wordpiece():
    texts = ["the playing player plays. the play is played! \u82cf\u8f7c" * 3]
    return train_wordpiece(TokenizerSettings(kind="wordpiece", vocab_size=38), texts)


def test_a_wordpiece_tokenizer_says_what_is_special_and_where_words_begin(wordpiece):
    vocabulary = mask_vocabulary(wordpiece, MaskingSettings(whole_words=True))
    names = {wordpiece.token(index) for index in vocabulary.special}
    assert names == {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}
    assert wordpiece.token(vocabulary.mask) == "[MASK]" and vocabulary.entries == wordpiece.vocab_size
    continued = [wordpiece.token(index) for index in np.flatnonzero(~vocabulary.starts_word)]
    assert continued and all(token.startswith("##") for token in continued)
    assert sum(wordpiece.token(index).startswith("##") for index in range(wordpiece.vocab_size)) == len(continued)
    marks = sentence_marks(wordpiece)
    assert {wordpiece.token(index) for index in np.flatnonzero(marks.ends)} == {".", "!"}


def test_a_tokenizer_without_mask_or_marks_of_words_is_refused():
    with pytest.raises(UserError, match=r"the byte tokenizer: expected one with \[MASK\].*wordpiece"):
        mask_vocabulary(ByteTokenizer(), MaskingSettings())
    with pytest.raises(UserError, match=r"masking.whole_words = True: the byte tokenizer does not mark"):
        word_starts(ByteTokenizer())


def test_settings_of_masks_are_checked():
    with pytest.raises(FieldError, match=r"masked \+ random = 1.1: expected at most 1"):
        MaskingSettings(masked=0.9, random=0.2)
