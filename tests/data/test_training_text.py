"""What a tokenizer is trained on: every source by its weight or size, all over its length, in words that end."""

import json
import random
import time

import pytest

from lmjax.data.training_text import training_text, with_few_long_words
from lmjax.settings import SourceSettings, TokenizerSettings
from lmjax.tokenizers.long_words import without_long_words
from lmjax.tokenizers.tokenizer import build_tokenizer


def lines(path, count, word="line"):
    """A source of numbered lines of 20 bytes each."""
    path.write_text("".join(f"{word[:4]:4} {number:014}\n" for number in range(count)))
    return str(path)


def read(found):
    return {name.split("/")[-1]: (size, whole) for name, size, whole in found.read}


def test_sources_that_fit_are_read_whole_in_their_order(tmp_path):
    a = SourceSettings(path=lines(tmp_path / "a.txt", 300), documents="line", weight=9.0)
    b = SourceSettings(path=lines(tmp_path / "b.txt", 200, "other"), end=1.0)
    found = training_text((a, b), 19 * 300 + 20 * 200)
    assert found.texts == [f"line {number:014}" for number in range(300)] + [(tmp_path / "b.txt").read_text()]
    assert read(found) == {"a.txt": (5700, True), "b.txt": (4000, True)}
    assert found.told == f"9,700 bytes: all 5,700 of text {tmp_path}/a.txt, all 4,000 of text {tmp_path}/b.txt"


def test_files_that_are_left_out_are_told(tmp_path):
    for name in ("a.txt", ".b.txt"):
        lines(tmp_path / name, 2)
    found = training_text([SourceSettings(path=str(tmp_path))], 1000)
    assert found.told == f"40 bytes: all 40 of text {tmp_path} (not read: 1 hidden)"


@pytest.mark.parametrize("documents", ["line", "file"])
def test_every_source_has_its_share_all_over_its_length(tmp_path, documents):
    sources = [
        SourceSettings(path=lines(tmp_path / f"{name}.txt", 20_000, name), documents=documents, weight=weight)
        for name, weight in (("aaaa", 1.0), ("bbbb", 3.0))
    ]
    found = training_text(sources, 200_000)
    shares = {"aaaa.txt": 50_000, "bbbb.txt": 150_000}
    assert read(found) == {name: (pytest.approx(share, rel=0.03), False) for name, share in shares.items()}
    assert sum(len(text) for text in found.texts) <= 200_000
    for name in ("aaaa", "bbbb"):
        text = "\n".join(part for part in found.texts if name in part)
        numbers = [int(line.split()[1]) for line in text.split("\n") if len(line.split()) == 2]
        counts = [sum(decile * 2000 <= number < (decile + 1) * 2000 for number in numbers) for decile in range(10)]
        assert min(counts) > 0.5 * max(counts), counts


def test_sources_without_weights_count_by_their_size_and_leave_over_what_they_do_not_need(tmp_path):
    big, small = (lines(tmp_path / f"{name}.txt", count) for name, count in (("big", 40_000), ("small", 10_000)))
    sources = [SourceSettings(path=path, documents="line", weight=2.0) for path in (big, small)]
    assert read(training_text(sources, 500_000)) == {
        "big.txt": (pytest.approx(310_000, rel=0.01), False),
        "small.txt": (190_000, True),
    }
    for source in sources:
        object.__setattr__(source, "weight", None)
    assert read(training_text(sources, 100_000)) == {
        "big.txt": (pytest.approx(80_000, rel=0.02), False),
        "small.txt": (pytest.approx(20_000, rel=0.02), False),
    }


def test_a_long_document_among_short_ones_is_read_all_over_its_length(tmp_path):
    long = "".join(f"word{number:06} " for number in range(100_000))
    texts = ["first " * 5_000, long, "last " * 5_000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = training_text([SourceSettings(path=str(tmp_path / "a.jsonl"))], 115_500)
    assert read(found)["a.jsonl"][0] == pytest.approx(115_500, rel=0.02)
    sizes = [sum(map(len, (text for text in found.texts if word in text))) for word in ("first", "word", "last")]
    assert sizes == [pytest.approx(3_000, rel=0.05), pytest.approx(110_000, rel=0.02), pytest.approx(2_700, abs=300)]
    words = [word for text in found.texts for word in text.split(" ") if len(word) == 10]
    assert set(words) <= set(long.split()), "pieces begin where words begin"
    assert (words[0], words[-1]) == ("word000000", "word099999")


def test_a_tokenizer_of_two_languages_knows_both(tmp_path):
    rng = random.Random(0)
    (tmp_path / "en.txt").write_text(" ".join(rng.choice(["red", "house", "river", "walks"]) for _ in range(40_000)))
    (tmp_path / "zh.txt").write_text(" ".join(rng.choice(["\u7ea2\u697c", "\u68a6"]) for _ in range(40_000)))
    sources = [SourceSettings(path=str(tmp_path / name)) for name in ("en.txt", "zh.txt")]
    settings = TokenizerSettings(kind="bpe", vocab_size=274, training_bytes=100_000)
    tokenizer = build_tokenizer(settings, training_text(sources, settings.training_bytes).texts)
    assert len(tokenizer.encode(" \u7ea2\u697c \u68a6")) <= 4


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("x" * 1024, [1024]),
        ("word " + "x" * 1025 + " y", [1029, 3]),
        ("7" * 2500, [1024, 1024, 452]),
        ("=_" * 1000, [1024, 976]),
        ("\u732b" * 1025, [1024, 1]),
        ("a1" * 2000, [4000]),
        ("a " * 2000, [4000]),
        ("", [0]),
    ],
)
def test_only_words_of_more_than_1024_signs_are_cut(text, lengths):
    parts = list(without_long_words([text]))
    assert [len(part) for part in parts] == lengths and "".join(parts) == text


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_text_without_blanks_trains_in_time_that_grows_with_its_length(kind):
    dna = "".join(random.Random(0).choices("ACGT", k=300_000))
    began = time.process_time()
    tokenizer = build_tokenizer(TokenizerSettings(kind=kind, vocab_size=320), [dna])
    assert tokenizer.vocab_size == 320
    assert time.process_time() - began < 10  # over 25 where the text is one word


def test_of_very_many_long_words_some_are_used_from_all_over_the_text():
    words = [chr(0x4E00 + number) * 1024 for number in range(300)]
    texts = ["before", "".join(words), "behind " + "x" * 1000]
    kept, long = with_few_long_words(texts)
    assert (kept[0], kept[-1], long) == ("before", texts[2], 300)
    used = [words.index(piece) for piece in kept[1:-1]]
    assert len(used) == 128 and used == sorted(used) and used[0] == 0 and used[-1] >= 297
    assert with_few_long_words(["a b", "x" * 3000]) == (["a b", "x" * 1024, "x" * 1024, "x" * 952], 2)
