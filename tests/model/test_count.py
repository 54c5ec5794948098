"""Exact parameter counts of every published size, from shapes alone, against the papers and against `init`."""

import jax
import pytest

from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.model.language_model import LanguageModel
from lmjax.model.presets import PRESETS, preset
from lmjax.settings import AttentionSettings, FeedForwardSettings, ModelSettings, NormSettings, PositionSettings

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
}

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
T5_LIKE = ModelSettings(vocab_size=64, positions=PositionSettings(kind="relative"), norm=NormSettings(bias=False))


def test_every_published_size_is_a_preset():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert count(preset(name)).parameters == PUBLISHED[name]


@pytest.mark.parametrize("settings", [*(PRESETS.values()), LLAMA, T5_LIKE], ids=[*PRESETS, "llama", "relative"])
def test_the_count_is_what_init_would_make(settings):
    shapes = jax.eval_shape(LanguageModel(settings).init, jax.random.key(0))
    assert count(settings).parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))


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
