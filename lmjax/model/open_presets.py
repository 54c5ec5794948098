"""The published sizes of today's open decoders as model settings, each from the config.json that came with its weights.

All but OPT are Llama's block with other values: RMSNorm, rotary positions, a gated feed-forward layer, no bias unless
said.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmjax.settings import (
    AttentionSettings,
    EmbeddingSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    RotaryScaling,
    ScoreSettings,
)

GEMMA3_PATTERN: tuple[Literal["dense", "banded"], ...] = ("banded",) * 5 + ("dense",)


def _llama(
    layers: int,
    width: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int,
    context: int,
    base: float,
    head_dim: int | None = None,
    eps: float = 1e-6,
    tied: bool = False,
) -> ModelSettings:
    return ModelSettings(
        layers=layers,
        width=width,
        context=context,
        vocab_size=vocab,
        attention=AttentionSettings(heads=heads, kv_heads=kv_heads, head_dim=head_dim, bias=False),
        feed_forward=FeedForwardSettings(width=feed_forward, activation="silu", gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=eps),
        positions=PositionSettings(kind="rotary", rotary_base=base),
        tied_head=tied,
        scaled_residual_init=False,
    )


def _llama3(
    layers: int, width: int, feed_forward: int, heads: int, *, factor: float, head_dim: int = 128, tied: bool = False
) -> ModelSettings:
    """Llama 3.1 and 3.2 (Grattafiori et al. 2024, table 3): contexts of 8,192 tokens stretched to 131,072."""
    plain = _llama(
        *(layers, width, feed_forward, heads, 8),
        vocab=128_256,
        context=131_072,
        base=500_000.0,
        head_dim=head_dim,
        eps=1e-5,
        tied=tied,
    )
    scaling = RotaryScaling(kind="llama3", factor=factor, original_context=8192, slow_turns=1.0, fast_turns=4.0)
    return dataclasses.replace(plain, positions=dataclasses.replace(plain.positions, rotary_scaling=scaling))


def _mistral(vocab: int, base: float, window: int | None) -> ModelSettings:
    """Jiang et al. 2023, table 1; version 0.3 of the release has no window."""
    plain = _llama(32, 4096, 14_336, 32, 8, vocab=vocab, context=32_768, base=base, eps=1e-5)
    if window is None:
        return plain
    return dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, pattern=("banded",), band=window))


def _qwen2(
    layers: int, width: int, feed_forward: int, heads: int, kv_heads: int, *, tied: bool = True
) -> ModelSettings:
    """Qwen2.5 (Yang et al. 2024, "Qwen2.5 technical report", table 1): a bias on queries, keys and values."""
    vocab, context = (151_936, 32_768) if tied else (152_064, 131_072)
    plain = _llama(layers, width, feed_forward, heads, kv_heads, vocab=vocab, context=context, base=1e6, tied=tied)
    return dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, bias=True, out_bias=False))


def _qwen3(layers: int, width: int, feed_forward: int, heads: int, *, tied: bool = True) -> ModelSettings:
    """Yang et al. 2025, "Qwen3 technical report", table 1: a norm on each head of queries and keys."""
    plain = _llama(
        *(layers, width, feed_forward, heads, 8), vocab=151_936, context=40_960, base=1e6, head_dim=128, tied=tied
    )
    return dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, qk_norm="head"))


def _olmo2(layers: int, width: int, feed_forward: int, heads: int) -> ModelSettings:
    """OLMo team 2025, "2 OLMo 2 Furious", section 2: norms of what branches give, and of queries and keys."""
    plain = _llama(layers, width, feed_forward, heads, heads, vocab=100_352, context=4096, base=500_000.0)
    return dataclasses.replace(
        plain,
        attention=dataclasses.replace(plain.attention, qk_norm="projection"),
        norm=dataclasses.replace(plain.norm, position="branch_output"),
    )


def _smollm2(
    layers: int, width: int, feed_forward: int, heads: int, kv_heads: int, *, base: float = 100_000.0
) -> ModelSettings:
    """Allal et al. 2025, "SmolLM2"; heads are 64 wide."""
    return _llama(
        *(layers, width, feed_forward, heads, kv_heads), vocab=49_152, context=8192, base=base, eps=1e-5, tied=True
    )


def _smollm3() -> ModelSettings:
    """Hugging Face 2025, "SmolLM3": every fourth layer has no positions."""
    plain = _llama(36, 2048, 11_008, 16, 4, vocab=128_256, context=65_536, base=5e6, tied=True)
    pattern: tuple[Literal["dense", "nope"], ...] = ("dense", "dense", "dense", "nope")
    return dataclasses.replace(plain, attention=dataclasses.replace(plain.attention, pattern=pattern))


def _gemma(
    layers: int,
    width: int,
    feed_forward: int,
    attention: AttentionSettings,
    positions: PositionSettings,
    *,
    vocab: int,
    context: int,
    logit_cap: float | None,
) -> ModelSettings:
    return ModelSettings(
        layers=layers,
        width=width,
        context=context,
        vocab_size=vocab,
        attention=attention,
        feed_forward=FeedForwardSettings(width=feed_forward, gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=1e-6, position="sandwich", unit_offset=True),
        positions=positions,
        embeddings=EmbeddingSettings(scaled=True),
        head=HeadSettings(logit_cap=logit_cap),
        scaled_residual_init=False,
    )


def _gemma2(
    layers: int,
    width: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    *,
    head_dim: int = 256,
    scale_dim: int | None = None,
) -> ModelSettings:
    """Gemma team 2024, "Gemma 2", table 1: local and global layers in turn, scores and logits capped."""
    attention = AttentionSettings(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        pattern=("banded", "dense"),
        band=4096,
        bias=False,
        scores=ScoreSettings(cap=50.0, scale_dim=scale_dim),
    )
    positions = PositionSettings(kind="rotary")
    return _gemma(layers, width, feed_forward, attention, positions, vocab=256_000, context=8192, logit_cap=30.0)


def _gemma3_1b() -> ModelSettings:
    """Gemma team 2025, "Gemma 3", table 1: five local layers to a global one; the two last of 26 are local."""
    attention = AttentionSettings(
        heads=4,
        kv_heads=1,
        head_dim=256,
        pattern=(GEMMA3_PATTERN * 5)[:26],
        band=512,
        bias=False,
        qk_norm="head",
    )
    positions = PositionSettings(kind="rotary", rotary_base=1e6, banded_rotary_base=10_000.0)
    return _gemma(26, 1152, 6912, attention, positions, vocab=262_144, context=32_768, logit_cap=None)


def _opt(layers: int, width: int, heads: int) -> ModelSettings:
    """Zhang et al. 2022, table 1: GPT-3's block with ReLU."""
    return ModelSettings(
        layers=layers,
        width=width,
        context=2048,
        vocab_size=50_272,
        attention=AttentionSettings(heads=heads),
        feed_forward=FeedForwardSettings(width=4 * width, activation="relu"),
        dropout=0.1,
        scaled_residual_init=False,
    )


OPEN_PRESETS: dict[str, ModelSettings] = {
    "llama3_1_8b": _llama3(32, 4096, 14_336, 32, factor=8.0),
    "llama3_1_70b": _llama3(80, 8192, 28_672, 64, factor=8.0),
    "llama3_2_1b": _llama3(16, 2048, 8192, 32, factor=32.0, head_dim=64, tied=True),
    "llama3_2_3b": _llama3(28, 3072, 8192, 24, factor=32.0, tied=True),
    "mistral_7b": _mistral(32_000, 10_000.0, 4096),
    "mistral_7b_v0_3": _mistral(32_768, 1e6, None),
    "qwen2_5_0_5b": _qwen2(24, 896, 4864, 14, 2),
    "qwen2_5_1_5b": dataclasses.replace(_qwen2(28, 1536, 8960, 12, 2), context=131_072),
    "qwen2_5_7b": _qwen2(28, 3584, 18_944, 28, 4, tied=False),
    "qwen3_0_6b": _qwen3(28, 1024, 3072, 16),
    "qwen3_1_7b": _qwen3(28, 2048, 6144, 16),
    "qwen3_4b": _qwen3(36, 2560, 9728, 32),
    "qwen3_8b": _qwen3(36, 4096, 12_288, 32, tied=False),
    "gemma2_2b": _gemma2(26, 2304, 9216, 8, 4),
    "gemma2_9b": _gemma2(42, 3584, 14_336, 16, 8),
    "gemma2_27b": _gemma2(46, 4608, 36_864, 32, 16, head_dim=128, scale_dim=144),
    "gemma3_1b": _gemma3_1b(),
    "olmo2_1b": _olmo2(16, 2048, 8192, 16),
    "olmo2_7b": _olmo2(32, 4096, 11_008, 32),
    "olmo2_13b": _olmo2(40, 5120, 13_824, 40),
    "smollm2_135m": dataclasses.replace(_smollm2(30, 576, 1536, 9, 3), init_std=1 / 24),
    "smollm2_360m": _smollm2(32, 960, 2560, 15, 5),
    "smollm2_1_7b": _smollm2(24, 2048, 8192, 32, 32, base=130_000.0),
    "smollm3_3b": _smollm3(),
    "opt_125m": _opt(12, 768, 12),
    "opt_1_3b": _opt(24, 2048, 32),
    "opt_2_7b": _opt(32, 2560, 32),
    "opt_6_7b": _opt(32, 4096, 32),
    "opt_13b": _opt(40, 5120, 40),
    "opt_30b": _opt(48, 7168, 56),
    "opt_66b": _opt(64, 9216, 72),
}
