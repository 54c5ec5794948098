"""Sentences in token shards, and BERT's pairs of them: half of the second texts follow, the others are elsewhere."""

import itertools
import random

import numpy as np
import pytest

from lmjax.data.draws import Stream
from lmjax.data.sentence_pairs import PairRows, plan_pairs
from lmjax.data.sentences import SentenceMarks, find_sentences, sentence_marks
from lmjax.errors import UserError
from lmjax.settings import PairSettings
from lmjax.tokenizers.byte import ByteTokenizer

CLS, SEP, EOS = 300, 301, 256


def marks(ends=".", closes=")"):
    return SentenceMarks(*(np.isin(np.arange(302), list(texts.encode())) for texts in (ends, closes)))


def sentences_of(shards, longest=99, **texts):
    found = find_sentences(shards, marks(**texts), longest)
    flat = shards.windows(np.array([0]), shards.tokens)[0]
    spans = zip(found.begins.tolist(), found.ends.tolist(), strict=True)
    texts = [bytes(flat[begin:end].tolist()).decode() for begin, end in spans]
    return [texts[begin:end] for begin, end in zip(found.first[:-1], found.first[1:], strict=True)]


def test_sentences_end_at_marks_with_what_closes_behind_them_and_at_documents_ends(make_shards):
    shards = make_shards(["ab. cd.) e", "fg", "h.i...j)k."])
    assert sentences_of(shards) == [["ab.", " cd.)", " e"], ["fg"], ["h.", "i...", "j)k."]]


def test_sentences_without_marks_are_cut_and_nothing_is_lost(make_shards):
    shards = make_shards(["abcdefghij.kl", "mnopq"])
    assert sentences_of(shards, 4) == [["abcd", "efgh", "ij.", "kl"], ["mnop", "q"]]


def test_a_document_without_tokens_has_no_sentence_and_a_part_of_one_document_may_end_anywhere(make_shards):
    class Nothing:
        vocab_size, eos_id = 257, EOS

        def encode_batch(self, texts):
            return [np.array([] if text == "-" else list(text.encode()), np.int32) for text in texts]

    assert sentences_of(make_shards(["a.b.c"]).part(0.0, 0.5)) == [["a.", "b"]]
    assert sentences_of(shards_by(Nothing(), make_shards, ["-", "a.b", "-", "c"])) == [["a.", "b"], ["c"]]


def shards_by(encoder, make_shards, texts):
    from lmjax.data.sources import MemoryDocuments
    from lmjax.data.write_shards import prepare_shards

    folder = make_shards(["x"]).folder.parent / "own"
    return prepare_shards(MemoryDocuments(texts), encoder, folder, fingerprint="own", shard_tokens=5)


def test_marks_of_a_tokenizer_are_stops_line_feeds_and_what_closes():
    found = sentence_marks(ByteTokenizer())
    assert bytes(np.flatnonzero(found.ends).tolist()) == b"\n!.?"
    assert bytes(np.flatnonzero(found.closes).tolist()) == b")]"


def words(rng, most):
    return "".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, most)))


@pytest.fixture
def corpus(make_shards):
    """120 documents of 1 to 40 sentences; the first letters number the document."""
    rng = random.Random(3)
    texts = [
        "".join(f"{chr(0x100 + document)}{words(rng, 12)}." for _ in range(rng.randint(1, 40)))
        for document in range(120)
    ]
    return make_shards(texts, shard_tokens=1000)


def pair_rows(shards, length=64, seed=0, **settings):
    return PairRows(shards, PairSettings(**settings), marks(), (CLS, SEP), length, Stream(seed))


def texts(batch, row):
    """The two texts of a row, which are asserted to stand as they must."""
    tokens, types, real = batch["tokens"][row], batch["token_types"][row], batch["segments"][row] > 0
    length = real.sum()
    assert real[:length].all() and not tokens[length:].any() and not types[length:].any()
    assert tokens[0] == CLS and tokens[length - 1] == SEP
    (middle,) = np.flatnonzero(tokens[: length - 1] == SEP)
    assert types[:length].tolist() == [0] * (middle + 1) + [1] * (length - middle - 1)
    assert batch["positions"][row][:length].tolist() == list(range(length))
    return tokens[1:middle].tolist(), tokens[middle + 1 : length - 1].tolist()


def found_in(document, text):
    """Where the text is in the document; -1 where it is not."""
    stops = (at for at in range(len(document) - len(text) + 1) if document[at : at + len(text)] == text)
    return next(stops, -1)


def test_half_of_the_second_texts_follow_the_first_and_the_others_are_from_another_document(corpus):
    rows = pair_rows(corpus, short=0.0)
    batch = rows.batch(np.arange(len(rows)))
    documents = [corpus.document(number).tolist() for number in range(len(corpus))]
    for row in range(len(rows)):
        a, b = texts(batch, row)
        (own,) = [number for number, document in enumerate(documents) if found_in(document, a) >= 0]
        if batch["labels"][row] == 0:
            whole = len(a) + len(b) < 64 - 3
            assert found_in(documents[own], a + b if whole else b) >= 0
        else:
            assert found_in(documents[own], b) < 0
            assert any(found_in(document, b) >= 0 for document in documents)
    assert 0 < batch["labels"].mean() < 1
    assert batch["label_weights"].tolist() == [1.0] * len(rows)


def test_labels_are_even_where_a_row_has_several_sentences(corpus):
    counts = np.zeros(2)
    for seed in range(20):
        rows = pair_rows(corpus, 64, seed)
        several = np.searchsorted(rows.sentences.begins, rows.plan.begins)  # the number of a's first sentence
        follows = rows.sentences.first[rows.plan.document + 1] > several + 1
        full = follows & (rows.plan.targets == 61)  # a sentence has at most 14 tokens
        counts += np.bincount(rows.plan.random[full].astype(int), minlength=2)
    share, total = counts[1] / counts.sum(), counts.sum()
    assert total > 5000
    assert abs(share - 0.5) < 3 * np.sqrt(0.25 / total)


def test_every_sentence_is_read_in_order_and_what_a_random_text_replaced_begins_the_next_row(corpus):
    rows = pair_rows(corpus)
    plan, bounds = rows.plan, corpus.document_bounds()
    last = np.where(plan.random, plan.middles, plan.ends)
    for document in range(len(corpus)):
        here = plan.document == document
        assert plan.begins[here].tolist() == [bounds[document], *last[here][:-1].tolist()]
        assert last[here][-1] == bounds[document + 1] - 1


def test_short_rows_come_with_their_probability(corpus):
    for short, expected in ((0.0, 0.0), (1.0, 1.0), (0.1, 0.1)):
        targets = np.concatenate([pair_rows(corpus, 64, seed, short=short).plan.targets for seed in range(10)])
        assert targets.min() >= 2 and targets.max() == 61
        share = (targets < 61).mean() / (59 / 60)  # one of the sixty short targets is the longest
        assert abs(share - expected) <= 3 * np.sqrt(expected * (1 - expected) / len(targets)) + 0.02 * (expected == 1)
    lengths = np.bincount(targets[targets < 61], minlength=61)[2:]
    assert (lengths > 0).sum() > 40, "of any length"


def test_the_longer_text_is_cut_at_its_beginning_or_its_end_until_both_fit(make_shards):
    shards = make_shards(["abcdefgh.ijklmnop.", "ABCDEFGHIJ.KLMNOPQRST."] * 30, shard_tokens=1000)
    rows = pair_rows(shards, 17, short=0.0)  # 14 tokens for both, and no sentence is longer than 7
    begins = set()
    batch = rows.batch(np.arange(len(rows)), np.arange(len(rows)))
    for row in range(len(rows)):
        a, b = texts(batch, row)
        begins.add((chr(a[0]), chr(b[0])))
        assert len(a) + len(b) <= 14
        assert min(len(a), len(b)) >= 1
    assert len({a for a, _ in begins}) > 5 and len({b for _, b in begins}) > 5


def cut(a, b, most):
    """How many tokens BERT's truncate_seq_pair takes of each text."""
    taken = [0, 0]
    while a + b > most:
        longer = 0 if a > b else 1
        taken[longer] += 1
        a, b = (a - 1, b) if longer == 0 else (a, b - 1)
    return taken


def test_as_many_tokens_are_cut_off_each_text_as_a_loop_cuts(corpus):
    from lmjax.data.sentence_pairs import _Spans

    rows, rng = pair_rows(corpus), np.random.default_rng(0)
    a, b = (_Spans(np.full(500, 1000), rng.integers(1, 90, 500)) for _ in range(2))
    short_a, short_b = rows._truncated(a, b, np.arange(500), np.zeros(500, np.int64))
    taken = np.stack([a.lengths - short_a.lengths, b.lengths - short_b.lengths], axis=1).tolist()
    assert taken == [cut(*lengths, 61) for lengths in zip(a.lengths.tolist(), b.lengths.tolist(), strict=True)]
    heads = np.concatenate([short_a.begins, short_b.begins]) - 1000
    total = np.array(taken).sum()
    assert (heads >= 0).all() and (heads <= np.array(taken).T.ravel()).all()
    assert abs(heads.sum() / total - 0.5) < 3 * np.sqrt(0.25 / total)


def test_pairs_depend_on_row_epoch_and_seed_and_keep_their_labels(corpus):
    rows = pair_rows(corpus)
    indices = np.arange(len(rows))
    first, again, later = (rows.batch(indices, np.full(len(rows), epoch)) for epoch in (0, 0, 1))
    few = rows.batch(indices[[5, 2]], np.array([1, 1]))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(few[name], later[name][[5, 2]])
    np.testing.assert_array_equal(first["labels"], later["labels"])
    moved = (first["tokens"] != later["tokens"]).any(axis=1)
    assert moved[first["labels"] == 1].mean() > 0.9
    assert (pair_rows(corpus, seed=1).plan.begins[:20] != rows.plan.begins[:20]).any()


def test_one_document_has_no_other_and_is_refused(make_shards):
    with pytest.raises(UserError, match=r"1 document with text: expected two or more.*paragraph"):
        pair_rows(make_shards(["ab.cd."]))
    with pytest.raises(UserError, match="sequence_length = 4: expected 5 or more"):
        pair_rows(make_shards(["ab.", "cd."]), 4)


def loop_of(sentences, settings, most, stream):
    """create_instances_from_document of BERT's released code, row by row, with the draws of `stream`."""
    rows = []
    for document, (first, stop) in enumerate(itertools.pairwise(sentences.first.tolist())):
        at, number = first, 0
        while at < stop:
            draws = stream.uniform(np.array([document]), np.array([number]), 4)[0]
            target = 2 + int(draws[1] * (most - 1)) if draws[0] < settings.short else most
            chunk, length = [], 0
            while at + len(chunk) < stop and length < target:
                length += int(sentences.ends[at + len(chunk)] - sentences.begins[at + len(chunk)])
                chunk.append(at + len(chunk))
            a_end = 1 + int(draws[2] * (len(chunk) - 1)) if len(chunk) >= 2 else 1
            random = len(chunk) == 1 or draws[3] < settings.random
            used = chunk[:a_end] if random else chunk
            bounds = [sentences.begins[chunk[0]], sentences.ends[chunk[a_end - 1]], sentences.ends[used[-1]]]
            rows.append((document, *map(int, bounds), target, bool(random)))
            at, number = used[-1] + 1, number + 1
    return rows


def test_the_plan_is_that_of_a_loop_over_documents(corpus):
    sentences, settings, stream = find_sentences(corpus, marks(), 30), PairSettings(short=0.3), Stream(4).of("plan")
    plan = plan_pairs(sentences, settings, 61, stream)
    assert list(zip(*(array.tolist() for array in plan), strict=True)) == loop_of(sentences, settings, 61, stream)
    assert len(plan.begins) > 200


def test_a_text_of_another_document_begins_with_a_sentence_and_is_as_long_as_the_row_lacks(corpus):
    rows = pair_rows(corpus)
    indices = np.arange(len(rows))
    other = rows._from_another(rows.plan, indices, np.zeros_like(indices))
    begins, ends, first = rows.sentences
    chosen = set()
    for row, (begin, length) in enumerate(zip(*(array.tolist() for array in other), strict=True)):
        sentence = begins.tolist().index(begin)
        document = int(np.searchsorted(first, sentence, side="right")) - 1
        chosen.add(document)
        assert document != rows.plan.document[row]
        lacking = int(rows.plan.targets[row] - (rows.plan.middles[row] - rows.plan.begins[row]))
        last = sentence
        while ends[last] - begin < lacking and last + 1 < first[document + 1]:
            last += 1
        assert begin + length == ends[last]
    assert len(chosen) > 100, "of 120"
