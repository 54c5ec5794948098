"""Every published size as model settings, with its source. The exact parameter counts are tested."""

from __future__ import annotations

from lmjax.errors import UserError, nearest
from lmjax.model.open_presets import OPEN_PRESETS
from lmjax.settings import (
    AttentionSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
)

GPT2_VOCABULARY = 50_257  # Radford et al. 2019, section 2.2; GPT-3 uses the same
BERT_VOCABULARY = 30_522  # the released "uncased" one
T5_VOCABULARY = 32_128  # 32,000 pieces and 100 sentinels, rounded up (Raffel et al. 2020, section 2.2)
GPT3_BAND = 256  # keys; chosen here: Brown et al. 2020, section 2.1, say "locally banded" without a width


def _gpt1() -> ModelSettings:
    """Radford et al. 2018, section 4.1: 12 layers, 768 wide, 12 heads, context 512; norm after each branch.

    The released vocabulary has 40,478 entries; weights start at N(0, 0.02).
    """
    return ModelSettings(
        layers=12,
        width=768,
        context=512,
        vocab_size=40_478,
        attention=AttentionSettings(heads=12, dropout=0.1),
        norm=NormSettings(position="post", final=False),
        dropout=0.1,
        scaled_residual_init=False,
    )


def _gpt2(layers: int, width: int, heads: int) -> ModelSettings:
    """Radford et al. 2019, table 2 and section 2.3; heads are 64 wide (the released checkpoints)."""
    return ModelSettings(
        layers=layers,
        width=width,
        context=1024,
        vocab_size=GPT2_VOCABULARY,
        attention=AttentionSettings(heads=heads),
    )


def _gpt3(layers: int, width: int, heads: int, head_dim: int) -> ModelSettings:
    """Brown et al. 2020, table 2.1 and section 2.1: GPT-2 with dense and locally banded layers in turn."""
    return ModelSettings(
        layers=layers,
        width=width,
        context=2048,
        vocab_size=GPT2_VOCABULARY,
        attention=AttentionSettings(heads=heads, head_dim=head_dim, pattern=("dense", "banded"), band=GPT3_BAND),
        feed_forward=FeedForwardSettings(width=4 * width),
    )


def _bert(layers: int, width: int) -> ModelSettings:
    """Devlin et al. 2018, section 3, and the released code: norm after each branch, eps 1e-12, heads 64 wide.

    With its pooler and the head of its masked language model; the classifier of sentence pairs is the task's.
    """
    return ModelSettings(
        layers=layers,
        width=width,
        context=512,
        vocab_size=BERT_VOCABULARY,
        attention=AttentionSettings(heads=width // 64, causal=False, dropout=0.1),
        feed_forward=FeedForwardSettings(activation="gelu_erf"),
        norm=NormSettings(eps=1e-12, position="post", final=False, embeddings=True),
        positions=PositionSettings(segment_types=2),
        head=HeadSettings(transform=True, bias=True, pooler=True),
        dropout=0.1,
        scaled_residual_init=False,
    )


def _t5(
    layers: int, width: int, heads: int, feed_forward: int, *, head_dim: int = 64, gated: bool = False
) -> ModelSettings:
    """Raffel et al. 2020, sections 2.1 and 3.7; `gated`: version 1.1 of the release, with a head of its own.

    Positions are relative and the context only bounds a row. Version 1.1 was pretrained without dropout.
    """
    return ModelSettings(
        layers=layers,
        encoder_layers=layers,
        width=width,
        context=512,
        vocab_size=T5_VOCABULARY,
        attention=AttentionSettings(heads=heads, head_dim=head_dim, bias=False, scaled=False),
        feed_forward=FeedForwardSettings(
            width=feed_forward, activation="gelu_tanh" if gated else "relu", gated=gated, bias=False
        ),
        norm=NormSettings(kind="rmsnorm", eps=1e-6),
        positions=PositionSettings(kind="relative"),
        head=HeadSettings(scaled=not gated),
        tied_head=not gated,
        dropout=0.0 if gated else 0.1,
        scaled_residual_init=False,
        init_std=None,
    )


PRESETS: dict[str, ModelSettings] = {
    "gpt1": _gpt1(),
    "gpt2_124m": _gpt2(12, 768, 12),
    "gpt2_355m": _gpt2(24, 1024, 16),
    "gpt2_774m": _gpt2(36, 1280, 20),
    "gpt2_1558m": _gpt2(48, 1600, 25),
    "gpt3_125m": _gpt3(12, 768, 12, 64),
    "gpt3_350m": _gpt3(24, 1024, 16, 64),
    "gpt3_760m": _gpt3(24, 1536, 16, 96),
    "gpt3_1300m": _gpt3(24, 2048, 16, 128),  # the table prints 24 heads of 128, which do not make 2,048
    "gpt3_2700m": _gpt3(32, 2560, 32, 80),
    "gpt3_6700m": _gpt3(32, 4096, 32, 128),
    "gpt3_13b": _gpt3(40, 5120, 40, 128),  # the table prints a width of 5,140, which is not 40 x 128
    "gpt3_175b": _gpt3(96, 12288, 96, 128),
    "bert_tiny": _bert(2, 128),  # the four small ones: Turc et al. 2019, table 1
    "bert_mini": _bert(4, 256),
    "bert_small": _bert(4, 512),
    "bert_medium": _bert(8, 512),
    "bert_base": _bert(12, 768),
    "bert_large": _bert(24, 1024),
    "t5_small": _t5(6, 512, 8, 2048),
    "t5_base": _t5(12, 768, 12, 3072),
    "t5_large": _t5(24, 1024, 16, 4096),
    "t5_3b": _t5(24, 1024, 32, 16384, head_dim=128),
    "t5_11b": _t5(24, 1024, 128, 65536, head_dim=128),
    "t5_v1_1_small": _t5(8, 512, 6, 1024, gated=True),
    "t5_v1_1_base": _t5(12, 768, 12, 2048, gated=True),
    "t5_v1_1_large": _t5(24, 1024, 16, 2816, gated=True),
    "t5_v1_1_xl": _t5(24, 2048, 32, 5120, gated=True),
    "t5_v1_1_xxl": _t5(24, 4096, 64, 10240, gated=True),
    **OPEN_PRESETS,
}


def preset(name: str) -> ModelSettings:
    """The settings of a published size. Raises UserError naming the closest known one."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
