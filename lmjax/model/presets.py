"""Every published size as model settings, with its source. The exact parameter counts are tested."""

from __future__ import annotations

from lmjax.errors import UserError, nearest
from lmjax.settings import AttentionSettings, FeedForwardSettings, ModelSettings, NormSettings

GPT2_VOCABULARY = 50_257  # Radford et al. 2019, section 2.2; GPT-3 uses the same
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
}


def preset(name: str) -> ModelSettings:
    """The settings of a published size. Raises UserError naming the closest known one."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
