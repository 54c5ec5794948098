"""Which class computes a model of given settings."""

from __future__ import annotations

import jax

from lmjax.model.encoder import Encoder
from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.model.language_model import LanguageModel
from lmjax.model.transformer import Transformer
from lmjax.settings import ComputeSettings, ModelSettings


def family_of(settings: ModelSettings) -> type[Transformer]:
    """`EncoderDecoder` with encoder_layers, `Encoder` without causality, or else `LanguageModel`."""
    if settings.encoder_layers is not None:
        return EncoderDecoder
    return LanguageModel if settings.attention.causal else Encoder


def model_of(
    settings: ModelSettings,
    compute: ComputeSettings = ComputeSettings(),
    platform: str | None = None,
    segmented: bool = True,
) -> Transformer:
    """The model of these settings, on the platform that is attached or on another; see `Transformer`."""
    return family_of(settings)(settings, compute, platform or jax.default_backend(), segmented)
