"""The comparison of a model of Chinese with an n-gram model: shuffles, ties, held-out sentences, smoothing."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import math
import random
import runpy
from pathlib import Path

import pytest

from lmjax.runs.evaluate import Reader

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    COMPARISON = runpy.run_path(str(BENCHMARKS / "chinese_sentences.py"))
CORPORA = runpy.run_path(str(BENCHMARKS / "chinese_corpora.py"))
KneserNey, shuffled, preferred = COMPARISON["KneserNey"], COMPARISON["shuffled"], COMPARISON["preferred"]
SENTENCE = "张三的文章,真水啊!"


def test_a_shuffle_is_another_order_of_the_same_characters():
    for text in (SENTENCE, "ab", "好好学"):
        drawn = {shuffled(text, random.Random(seed)) for seed in range(20)}
        assert text not in drawn and {tuple(sorted(own)) for own in drawn} == {tuple(sorted(text))}
    assert shuffled(SENTENCE, random.Random(1)) == shuffled(SENTENCE, random.Random(1))


def test_a_shuffle_of_chinese_characters_leaves_the_others_where_they_are():
    for seed in range(20):
        permuted = shuffled(SENTENCE, random.Random(seed), han_only=True)
        assert permuted != SENTENCE and (permuted[5], permuted[9]) == (",", "!")
        assert sorted(permuted) == sorted(SENTENCE)
    for text, only in (("哈哈哈", False), ("abc", True), ("a张b", True)):
        with pytest.raises(ValueError, match="no other permutation"):
            shuffled(text, random.Random(0), han_only=only)


def test_equal_probabilities_count_as_wrong():
    values = {"a": -1.0, "b": -2.0, "c": -2.0}
    assert preferred(lambda own: [values[text] for text in own], "abc", "bca") == [True, False, False]


def test_kneser_ney_gives_what_is_reckoned_by_hand():
    """Bigrams 3-0 three times, 0-1 and 1-3 twice, 0-2 and 2-3 once: D = 2/6; 1 ends one of 5: D = 3/5."""
    model = KneserNey([[0, 1], [0, 1], [0, 2]], 2, vocabulary=5, boundary=3)
    below = (1 - 0.6 + 0.6 * 4 / 5) / 5
    assert model.probability(1, [0]) == pytest.approx((2 - 1 / 3 + 1 / 3 * 2 * below) / 3)
    assert model.probability(4, [0]) == pytest.approx(1 / 3 * 2 * (0.6 * 4 / 5 / 5) / 3)
    assert model.probability(1, [4]) == pytest.approx(below)  # 4 was never read
    both = math.log(model.probability(0, [3])) + math.log(model.probability(1, [0]))
    assert model.log_prob([0, 1]) == pytest.approx(both) and model.log_prob([]) == 0.0


@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_probabilities_of_an_n_gram_model_add_up_to_one(order):
    rng = random.Random(order)
    documents = [[rng.choice((0, 1, 2, 2, 2, 5)) for _ in range(rng.randrange(12))] for _ in range(40)]
    model = KneserNey(documents, order, vocabulary=8, boundary=7)
    for before in (documents[0], documents[1], [7] * 4, [2, 2, 2, 2], [6, 6, 6, 6], [0, 6, 2, 2]):
        padded = [7] * order + before
        assert math.fsum(model.probability(token, padded) for token in range(8)) == pytest.approx(1.0)


def test_sentences_end_at_stops_and_are_mostly_chinese():
    text = "宝玉又道：“等太太醒了我就讨。”\n且说贾珍那边，开了宗祠。the cat sat 一二三四五六。哈哈哈哈哈哈哈\n短。"
    assert CORPORA["sentences"](text) == ["宝玉又道：“等太太醒了我就讨。”", "且说贾珍那边，开了宗祠。"]


def test_documents_with_a_long_sentence_in_common_stay_together():
    long, other = "一二三四五六七八九十。", "甲乙丙丁戊己庚辛壬癸。"
    documents = [f"{long}哦。", "哦。好。", f"啊。{other}", f"{other}{long}", "好。"]
    assert sorted(map(sorted, CORPORA["related"](documents))) == [[0, 2, 3], [1], [4]]


@pytest.mark.data
def test_held_out_sentences_occur_in_no_other_document(shared_data):
    folder = shared_data("zh_classics").parent
    texts = CORPORA["split"](folder)
    assert len(texts.sentences) == len({sentence for _, sentence in texts.sentences}) == 100
    assert len(set(texts.train + texts.validation)) == len(texts.train) + len(texts.validation) > 8000
    learned = "\n".join(texts.train + texts.validation)
    assert not any(sentence in learned for _, sentence in texts.sentences)
    assert [len(group) for group in CORPORA["related"](texts.train + texts.validation) if _apart(group, texts)] == []
    assert texts == CORPORA["split"](folder) != CORPORA["split"](folder, seed=1)


def _apart(group, texts):
    """Whether some of these documents train and others validate."""
    return min(group) < len(texts.train) <= max(group)


def test_both_models_read_the_same_tokens(whole):
    reader = Reader(whole[1])
    documents = ["张三的文章真水啊。", "王五的文章好。"]
    texts = CORPORA["Split"](documents * 3, ["李四的书好。"], [("a", "张三的书好。"), ("b", "文章真水啊。")])
    found = COMPARISON["results"](reader, texts)
    assert found["train"] == {"documents": 6, "tokens": 3 * sum(len(text.encode()) for text in documents)}
    assert set(found["models"]) == {"lmjax", f"{min(found['orders'], key=found['orders'].get)}-gram"}
    for own in found["models"].values():
        assert own["all_characters"] == 2 - len(own["wrong"]) and 0 <= own["han_only"] <= 2
    lmjax = found["models"]["lmjax"]
    assert lmjax["pair"] == [one.log_prob for one in reader.texts(COMPARISON["PAIR"])]
    (held,) = reader.texts(texts.validation)
    assert lmjax["bits_per_byte"] == pytest.approx(-held.log_prob / held.bytes / math.log(2))
    assert found["models"].popitem()[1]["bits_per_byte"] == pytest.approx(min(found["orders"].values()))
