"""Ranked responses: pairs in people's order by the likelihood of a response after its prompt, and by scores."""

import math

import numpy as np
import pytest

from lmjax.data.conversations import Record, Turn
from lmjax.errors import UserError
from lmjax.evaluate.means import Mean, mean_of, mean_over_groups
from lmjax.evaluate.measures import Measure, measure_of
from lmjax.evaluate.preferences import by_likelihood, by_scores, orders, response_tokens
from lmjax.generate.chat import ChatFormat, StageTurns
from lmjax.settings import TemplateSettings
from lmjax.tokenizers.byte import ByteTokenizer
from tests.evaluate.test_truthfulness import Bytes

TOKENIZER = ByteTokenizer()
ASKED = (Turn("system", "Be."), Turn("user", "Hi"), Turn("assistant", "Yo"), Turn("user", "Go"))


def ranking(answers, ranks, turns=ASKED[1:2]):
    return Record(turns, tuple(answers), tuple(ranks))


def test_pairs_of_different_ranks_are_compared_and_a_tie_is_half():
    assert orders([3.0, 2.0, 1.0], [0, 1, 2]) == [1.0, 1.0, 1.0]
    assert orders([1.0, 2.0, 2.0], [0, 0, 1]) == [0.0, 0.5]  # the two of rank 0 are no pair
    assert orders([1.0, 2.0], [1, 1]) == []


def test_the_error_of_pairs_knows_their_prompts():
    groups = [[1.0, 1.0, 1.0], [0.0], [1.0, 0.0]]
    value = 4 / 6
    spread = sum((sum(own) - value * len(own)) ** 2 for own in groups) * 3 / 2
    assert mean_over_groups(groups) == pytest.approx((value, math.sqrt(spread) / 6))
    alone = [1.0, 0.0, 0.5, 1.0]
    assert mean_over_groups([[each] for each in alone]) == pytest.approx(mean_of(alone))
    assert math.isnan(mean_over_groups([[1.0, 0.0]]).error)


def test_a_response_of_plain_turns_follows_a_blank_and_its_end_is_not_counted():
    ((ids, count),) = response_tokens(ranking(["ab"], [0], ASKED), ChatFormat(), TOKENIZER)
    assert bytes(ids.tolist()).decode() == "Be.\nUser: Hi\nAssistant:Yo\nUser: Go\nAssistant: ab"
    assert count == 3


def test_a_response_in_a_stages_template_is_encoded_as_in_training_without_its_end():
    ((ids, count),) = response_tokens(ranking(["ab"], [0], ASKED), StageTurns(TemplateSettings()), TOKENIZER)
    prompt = [*b"Be.\n\nUser: Hi\nAssistant:", *b" Yo", TOKENIZER.eos_id, *b"\nUser: Go\nAssistant:"]
    assert ids.tolist() == [*prompt, *b" ab"] and count == 3


def test_accuracies_are_of_the_sum_and_per_token():
    records = [ranking(["aaa", "b"], [0, 1]), ranking(["d", "c", "cc"], [1, 0, 0]), ranking(["b!!!", "b"], [0, 1])]
    part = by_likelihood("set", records, Bytes(), ChatFormat(), TOKENIZER)
    sums = [[-(32 + sum(answer.encode())) / 100 for answer in record.answers] for record in records]
    for each, own, record in zip(part.examples, sums, records, strict=True):
        assert each["log_prob"] == pytest.approx(own)
        assert each["tokens"] == [1 + len(answer) for answer in record.answers]
    whole, per_token = part.measures
    # sums: aaa < b; d < c, d > cc. Per token: aaa (-0.8075) < b (-0.65); d (-0.66) < c (-0.655), d > cc (-0.7667)
    # The third: b!!! < b as sums, and per token b!!! (-0.458) > b (-0.65)
    assert whole.key == ("set", "log_prob", "all")
    assert whole.mean == pytest.approx(mean_over_groups([[0.0], [1.0, 0.0], [0.0]])) and whole.examples == 4
    assert per_token.mean == pytest.approx(mean_over_groups([[0.0], [1.0, 0.0], [1.0]]))
    assert part.counts["rankings"] == 3 and part.counts["ties by log_prob"] == 0


def test_a_reward_model_is_compared_by_its_scores_and_sets_without_pairs_are_refused():
    records = [ranking(["a", "b"], [0, 1]), ranking(["c", "d"], [1, 0])]
    part = by_scores("set", records, [([2.0, 1.0], [0, 1]), ([0.5, 0.5], [1, 0])])
    (one,) = part.measures
    assert one.key == ("set", "reward", "all") and one.mean == pytest.approx((0.75, 0.25))
    assert part.counts["ties by reward"] == 1
    with pytest.raises(UserError, match="set: no two responses of different ranks are left"):
        by_scores("set", records[:1], [([1.0], [0])])


def test_a_measure_is_the_same_after_json():
    for mean in (Mean(0.5, 0.25), Mean(1.0, math.nan)):
        one = Measure("set", "mc1", "all", mean, 3)
        back = measure_of(one.plain())
        assert back.key == one.key and back.examples == 3
        np.testing.assert_equal(tuple(back.mean), tuple(mean))
