"""Rates and batches by rule: each against its paper's numbers."""

import math

import pytest

from lmjax.model.flops import count
from lmjax.model.presets import preset
from lmjax.scaling.rules import GPT3, Trained, fixed, gpt3, inverse_width, kaplan, porian
from lmjax.settings import ModelSettings

SHAPES = ("gpt3_125m", "gpt3_350m", "gpt3_760m", "gpt3_1300m", "gpt3_2700m", "gpt3_6700m", "gpt3_13b", "gpt3_175b")


def trained(model: ModelSettings, tokens: float = 300e9, sequence_length: int = 2048) -> Trained:
    return Trained(model, count(model), tokens, sequence_length)


def of_head_and_body(parameters: int) -> Trained:
    """A model of which porian() sees so many parameters: with the head and without the tables."""
    model = ModelSettings(layers=1, width=4, vocab_size=8)
    counted = count(model)
    object.__setattr__(counted, "parameters_with_head", parameters)
    return Trained(model, counted, 1e12, 2048)


@pytest.mark.parametrize(("name", "row"), list(zip(SHAPES, GPT3, strict=True)))
def test_gpt3_gives_its_table_back(name, row):
    parameters, batch, rate = row
    found = gpt3(trained(preset(name)))
    assert count(preset(name)).parameters == parameters
    assert found.learning_rate == pytest.approx(rate, rel=1e-12)
    assert found.batch_size == 2 ** round(math.log2(batch / 2048))
    steps = 300e9 / (found.batch_size * 2048)
    assert found.warmup == math.ceil(375e6 / 300e9 * steps)
    assert f"{parameters:,} parameters" in found.reason


def test_gpt3_lies_between_its_rows_and_stops_at_its_ends():
    between = gpt3(Trained(*_sized(560_000_000), 300e9, 2048)).learning_rate
    assert 2.5e-4 < between < 3.0e-4
    small = gpt3(Trained(*_sized(1_000_000), 300e9, 2048))
    assert small.learning_rate == pytest.approx(6e-4)
    assert "the nearest end" in small.reason


def _sized(parameters: int) -> tuple[ModelSettings, object]:
    model = ModelSettings(layers=1, width=4, vocab_size=8)
    counted = count(model)
    object.__setattr__(counted, "parameters", parameters)
    return model, counted


def test_porian_is_0_0047_and_160_rows_of_2048_at_108_million():
    found = porian(of_head_and_body(108_000_000))
    assert found.learning_rate == pytest.approx(0.0047)
    assert found.batch_size == 128  # the power of two nearest to 160
    eight = porian(of_head_and_body(8 * 108_000_000))
    assert eight.learning_rate == pytest.approx(0.0047 / 2)
    assert eight.batch_size == 512  # of 640


def test_porian_warms_up_over_as_many_tokens_as_parameters():
    found = porian(of_head_and_body(108_000_000))
    assert found.warmup == 108_000_000 // (128 * 2048)


def test_a_short_run_has_at_least_eight_steps():
    model = ModelSettings(layers=1, width=4, vocab_size=8)
    found = gpt3(Trained(model, count(model), 16 * 2048, 2048))
    assert found.batch_size == 2
    assert "the most that leaves 8 steps" in found.reason


def test_kaplan_follows_equation_d1():
    model = preset("gpt2_124m")
    size = count(model).non_embedding_parameters
    found = kaplan(64)(trained(model, 1e9))
    assert found.learning_rate == pytest.approx(0.003239 - 0.0001395 * math.log(size))
    assert found.learning_rate == pytest.approx(6.9e-4, rel=0.01)  # by hand, at 85 million
    assert found.batch_size == 64


def test_kaplan_has_no_rate_where_its_line_is_below_0():
    with pytest.raises(ValueError, match=r"the rule gives -.*; it holds below 10\^10"):
        kaplan(64)(trained(preset("gpt3_175b")))


def test_inverse_width_halves_the_rate_of_twice_the_width():
    rule = inverse_width(1e-2, 64, batch_size=8)
    rates = [rule(trained(ModelSettings(width=width, vocab_size=8), 1e6)).learning_rate for width in (32, 64, 128)]
    assert rates == [2e-2, 1e-2, 5e-3]


def test_fixed_warms_up_for_a_fraction_of_the_steps():
    found = fixed(1e-3, 4, warmup=0.1)(trained(ModelSettings(vocab_size=8), 4 * 64 * 200, 64))
    assert (found.learning_rate, found.batch_size, found.warmup) == (1e-3, 4, 20)
