"""Exact parameter counts of every published size, from shapes alone, against the papers and against `init`."""

import dataclasses

import jax
import pytest

from lmjax.errors import UserError
from lmjax.model.families import model_of
from lmjax.model.flops import count, forward_flops
from lmjax.model.presets import PRESETS, preset
from lmjax.settings import (
    AttentionSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
)

# Radford et al. 2018 and 2019, Brown et al. 2020, from the published shapes.
PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "gpt3_125m": 125_226_240,
    "gpt3_350m": 355_871_744,
    "gpt3_760m": 760_300_032,
    "gpt3_1300m": 1_315_723_264,
    "gpt3_2700m": 2_651_553_280,
    "gpt3_6700m": 6_658_404_352,
    "gpt3_13b": 12_853_386_240,
    "gpt3_175b": 174_604_259_328,
    # Devlin et al. 2018 and Turc et al. 2019 with the masked language model's head, without the pairs' classifier
    "bert_tiny": 4_385_920 + 30_522 + 128 * 129 + 2 * 128,
    "bert_mini": 11_170_560 + 30_522 + 256 * 257 + 2 * 256,
    "bert_small": 28_763_648 + 30_522 + 512 * 513 + 2 * 512,
    "bert_medium": 41_373_184 + 30_522 + 512 * 513 + 2 * 512,
    "bert_base": 110_106_428 - 2 * 768 - 2,
    "bert_large": 336_226_108 - 2 * 1024 - 2,
    # Raffel et al. 2020, and the configurations of version 1.1
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "t5_v1_1_xxl": 11_135_332_352,
    # as the pages of the released weights on huggingface.co count the tensors of their safetensors files
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    # the same, less two rows of positions that no token has
    "opt_125m": 125_239_296 - 2 * 768,
    "opt_1_3b": 1_315_758_080 - 2 * 2048,
    "opt_2_7b": 2_651_596_800 - 2 * 2560,
    "opt_6_7b": 6_658_473_984 - 2 * 4096,
    "opt_13b": 12_853_473_280 - 2 * 5120,
    "opt_30b": 29_974_540_288 - 2 * 7168,
    "opt_66b": 65_719_701_504 - 2 * 9216,
}
BERTS = {"bert_base": 109_482_240, "bert_large": 335_141_888}  # the encoder and its pooler

LLAMA = ModelSettings(
    layers=4,
    width=64,
    context=32,
    vocab_size=100,
    attention=AttentionSettings(heads=8, kv_heads=2, bias=False),
    feed_forward=FeedForwardSettings(width=96, activation="silu", gated=True, bias=False),
    norm=NormSettings(kind="rmsnorm"),
    positions=PositionSettings(kind="rotary"),
    tied_head=False,
)
QK_LAYERNORM = dataclasses.replace(
    LLAMA,
    attention=AttentionSettings(heads=8, kv_heads=2, qk_norm="projection", out_bias=False),
    norm=NormSettings(position="sandwich"),
)
T5_LIKE = ModelSettings(vocab_size=64, positions=PositionSettings(kind="relative"), norm=NormSettings(bias=False))


def test_every_published_size_is_a_preset():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert count(preset(name)).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    "settings", [*(PRESETS.values()), LLAMA, QK_LAYERNORM, T5_LIKE], ids=[*PRESETS, "llama", "norms", "relative"]
)
def test_the_count_is_what_init_would_make(settings):
    shapes = jax.eval_shape(model_of(settings).init, jax.random.key(0))
    assert count(settings).parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", BERTS)
def test_an_encoder_without_its_masked_head_has_the_published_number_too(name):
    assert count(dataclasses.replace(preset(name), head=HeadSettings(pooler=True))).parameters == BERTS[name]


def test_flops_of_two_stacks_are_those_of_their_products_by_hand():
    settings = ModelSettings(
        layers=2,
        encoder_layers=3,
        width=8,
        context=6,
        vocab_size=10,
        attention=AttentionSettings(heads=2, head_dim=3, bias=False),
        feed_forward=FeedForwardSettings(width=20, bias=False),
        positions=PositionSettings(kind="relative"),
    )
    T, S, D, HK = 4, 7, 8, 6
    layer = 4 * D * HK + 2 * D * 20
    encoder = S * 3 * (2 * layer + 4 * HK * S)  # every input sees all of them
    decoder = T * 2 * 2 * layer + 2 * 4 * HK * (1 + 2 + 3 + 4)
    across = 2 * (T * 2 * 2 * D * HK + S * 2 * 2 * D * HK + T * 4 * HK * S)
    row = encoder + decoder + across + T * 2 * 10 * D
    assert count(settings, T, S).flops_per_token == pytest.approx(3 * row / (T + S), abs=2)
    of = forward_flops(settings, T, S)
    assert (of.body + of.head + of.scores) * (T + S) == pytest.approx(row)


def test_a_query_of_an_encoder_sees_all_keys():
    encoder = dataclasses.replace(preset("bert_tiny"), vocab_size=10, head=HeadSettings())
    decoder = dataclasses.replace(encoder, attention=dataclasses.replace(encoder.attention, causal=True))
    seen = [forward_flops(settings, 100).scores for settings in (encoder, decoder)]
    assert seen == [2 * 4 * 128 * 100, 2 * 4 * 128 * 50.5]


def test_embeddings_are_the_token_and_position_tables():
    counted = count(preset("gpt2_124m"))
    assert counted.embedding_parameters == (50_257 + 1024) * 768
    assert counted.embedding_parameters + counted.non_embedding_parameters == counted.parameters


def test_flops_add_up_by_hand_for_dense_and_banded_layers():
    settings = ModelSettings(
        layers=2,
        width=8,
        context=6,
        vocab_size=10,
        attention=AttentionSettings(heads=2, pattern=("dense", "banded"), band=2),
    )
    seen_dense = sum(range(1, 7)) / 6  # a causal row of 6: query t sees t + 1 keys
    seen_banded = (1 + 5 * 2) / 6
    matrices = 2 * (4 * 8 * 8 + 2 * 8 * 32) + 10 * 8
    assert count(settings).flops_per_token == 6 * matrices + 12 * 8 * (seen_dense + seen_banded)
    assert count(settings).flops_per_token_6n == 6 * count(settings).parameters


def test_a_query_of_an_encoder_sees_both_sides():
    attention = AttentionSettings(heads=2, pattern=("dense", "banded"), band=3, causal=False)
    settings = ModelSettings(layers=2, width=8, context=6, vocab_size=10, attention=attention)
    seen_banded = (3 + 4 + 5 + 5 + 4 + 3) / 6
    matrices = 2 * (4 * 8 * 8 + 2 * 8 * 32) + 10 * 8
    assert count(settings).flops_per_token == 6 * matrices + 12 * 8 * (6 + seen_banded)
    short = ModelSettings(layers=2, width=8, context=2, vocab_size=10, attention=attention)  # the band covers it
    assert count(short).flops_per_token == 6 * matrices + 12 * 8 * (2 + 2)


def test_an_unknown_preset_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'gpt2_124m'"):
        preset("gpt2_124")


def test_an_unknown_vocabulary_cannot_be_counted():
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        count(ModelSettings())
