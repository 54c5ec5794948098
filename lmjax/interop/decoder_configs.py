"""`config.json` of Llama and the model types that came of it, and lmjax's settings: what one says in the other's words.

One reader and one writer serve all of them: `Dialect` says what a type has fixed, what it takes where its config.json
is silent, and which fields it has beside Llama's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmjax.interop.config_fields import ACTIVATIONS, ConfigFields, name_of, write_sizes
from lmjax.interop.rotary_fields import read_rotary, read_rotary_of_kinds, write_rotary
from lmjax.interop.window_fields import WINDOWS, period_of
from lmjax.settings import (
    AttentionSettings,
    EmbeddingSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    ScoreSettings,
)

_SCORE_CAP, _LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
_TANH_GELU = "gelu_pytorch_tanh"
_GEMMA_ACTIVATIONS = {_TANH_GELU: "gelu_tanh"} | ACTIVATIONS


@dataclass(frozen=True)
class Dialect:
    """A model type of Llama's line; the defaults are Llama's own.

    `bias` is that of queries, keys and values, and then of the output, where no field says it. `layers` are the fields
    that say which layers have a window: see `WINDOWS`.
    """

    architecture: str
    eps: float = 1e-6
    base: float = 10_000.0
    head_dim: int | None = None
    kv_heads_implied: bool = True  # as many as heads where the field is absent
    tied: bool = False
    bias: tuple[bool, bool] | None = None
    feed_forward_bias: bool = False  # whether a field says it
    qk_norm: Literal["none", "head", "projection"] = "none"
    norm: Literal["pre", "sandwich", "branch_output"] = "pre"
    layers: Literal["none", "all", "late", "nope", "alternate", "sixth"] = "none"
    window: int | None = None  # where the field is absent
    gemma: bool = False  # scaled embeddings, norms with an offset, a tanh GELU, a field for the scale of scores
    local_base: float | None = None  # of layers with a window, where they have one of their own
    caps_scores: bool = False
    caps: tuple[float | None, float | None] = (None, None)  # of scores and of logits, where the fields are absent
    ignored: tuple[str, ...] = ()  # fields of this type alone that say nothing of what is computed


DIALECTS: Mapping[str, Dialect] = {
    "llama": Dialect("LlamaForCausalLM", feed_forward_bias=True),
    "mistral": Dialect("MistralForCausalLM", kv_heads_implied=False, bias=(False, False), layers="all", window=4096),
    "qwen2": Dialect("Qwen2ForCausalLM", kv_heads_implied=False, bias=(True, False), layers="late", window=4096),
    "qwen3": Dialect(
        "Qwen3ForCausalLM", head_dim=128, kv_heads_implied=False, qk_norm="head", layers="late", window=4096
    ),
    "smollm3": Dialect(
        "SmolLM3ForCausalLM",
        base=2_000_000.0,
        kv_heads_implied=False,
        tied=True,
        feed_forward_bias=True,
        layers="nope",
        ignored=("max_window_layers",),
    ),
    "olmo2": Dialect("Olmo2ForCausalLM", eps=1e-5, qk_norm="projection", norm="branch_output"),
    "gemma2": Dialect(
        "Gemma2ForCausalLM",
        head_dim=256,
        kv_heads_implied=False,
        tied=True,
        norm="sandwich",
        layers="alternate",
        window=4096,
        gemma=True,
        caps_scores=True,
        caps=(50.0, 30.0),
    ),
    "gemma3_text": Dialect(
        "Gemma3ForCausalLM",
        base=1_000_000.0,
        head_dim=256,
        kv_heads_implied=False,
        tied=True,
        qk_norm="head",
        norm="sandwich",
        layers="sixth",
        window=4096,
        gemma=True,
        local_base=10_000.0,
    ),
}
MOST_LAYERS = 10_000  # each of which has a kind: a number from a damaged file would fill the memory


def read_decoder(model_type: str, fields: ConfigFields) -> ModelSettings:
    """The settings of a model of one of DIALECTS."""
    dialect = DIALECTS[model_type]
    fields.expect("rope_interleaved", False)
    for name in dialect.ignored:
        fields.get(name, None)
    if dialect.gemma:
        fields.expect("use_bidirectional_attention", False)
    sizes = fields.sizes()
    if sizes["layers"] > MOST_LAYERS:
        raise fields.error("num_hidden_layers", f"at most {MOST_LAYERS:,}", "take it from the model's own config.json")
    attention = _attention(fields, dialect, sizes["layers"])
    activation = "hidden_activation" if dialect.gemma else "hidden_act"
    if dialect.gemma:
        fields.expect("hidden_act", fields.get(activation, _TANH_GELU))  # an old second name
    return ModelSettings(
        **sizes,
        attention=attention,
        feed_forward=FeedForwardSettings(
            width=fields.size("intermediate_size"),
            activation=fields.choice(activation, _TANH_GELU if dialect.gemma else "silu", ACTIVATIONS),
            gated=True,
            bias=dialect.feed_forward_bias and fields.flag("mlp_bias", False),
        ),
        norm=NormSettings(
            kind="rmsnorm",
            eps=fields.positive("rms_norm_eps", dialect.eps),
            position=dialect.norm,
            unit_offset=dialect.gemma,
        ),
        positions=_positions(fields, dialect, attention),
        embeddings=EmbeddingSettings(scaled=dialect.gemma),
        tied_head=fields.flag("tie_word_embeddings", dialect.tied),
        head=HeadSettings(logit_cap=_cap(fields, _LOGIT_CAP, dialect.caps[1]) if dialect.gemma else None),
        init_std=fields.positive("initializer_range", 0.02),
        scaled_residual_init=False,
    )


def write_decoder(model_type: str, settings: ModelSettings) -> dict[str, Any]:
    """The fields of a config.json of one of DIALECTS, which need not be able to say all of the settings."""
    dialect, attention = DIALECTS[model_type], settings.attention
    fields: dict[str, Any] = {
        "architectures": [dialect.architecture],
        **write_sizes(settings),
        "intermediate_size": settings.feed_forward_width,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "attention_dropout": attention.dropout,
        "rms_norm_eps": settings.norm.eps,
        "initializer_range": settings.init_std,
        "tie_word_embeddings": settings.tied_head,
        "pad_token_id": None,  # else some types take one of their own, which may be beyond the vocabulary
    }
    if dialect.gemma:
        fields["hidden_activation"] = name_of(settings, _GEMMA_ACTIVATIONS)
    else:
        fields["hidden_act"] = name_of(settings, ACTIVATIONS)
    if dialect.bias is None:
        fields["attention_bias"] = attention.bias
    if dialect.feed_forward_bias:
        fields["mlp_bias"] = settings.feed_forward.bias
    if dialect.gemma:
        fields["query_pre_attn_scalar"] = _whole(attention.scores.scale_dim or settings.head_dim)
        fields |= {_SCORE_CAP: attention.scores.cap, _LOGIT_CAP: settings.head.logit_cap}
    return fields | WINDOWS[dialect.layers].write(settings) | write_rotary(settings, dialect.local_base is not None)


def _attention(fields: ConfigFields, dialect: Dialect, layers: int) -> AttentionSettings:
    own_width = fields.has("head_dim") or dialect.head_dim is not None
    heads = fields.size("num_attention_heads") if own_width else fields.divisor("num_attention_heads", "hidden_size")
    head_dim = fields.size("head_dim") if fields.has("head_dim") else dialect.head_dim
    implied = not fields.has("num_key_value_heads")
    if implied and not dialect.kv_heads_implied and not fields.says("num_key_value_heads"):
        raise fields.error("num_key_value_heads", "a whole number above 0", "take it from the model's own config.json")
    bias = dialect.bias
    if bias is None:
        bias = (fields.flag("attention_bias", False),) * 2
    kinds, band = WINDOWS[dialect.layers].read(fields, dialect.window, layers)
    return AttentionSettings(
        heads=heads,
        kv_heads=None if implied else fields.divisor("num_key_value_heads", "num_attention_heads"),
        head_dim=head_dim,
        pattern=period_of(kinds),
        band=band,
        bias=bias[0],
        out_bias=None if bias[0] == bias[1] else bias[1],
        qk_norm=dialect.qk_norm,
        scores=_scores(fields, dialect, head_dim) if dialect.gemma else ScoreSettings(),
        dropout=fields.fraction("attention_dropout", 0.0),
    )


def _scores(fields: ConfigFields, dialect: Dialect, head_dim: int | None) -> ScoreSettings:
    scale_dim = fields.positive("query_pre_attn_scalar", 256)
    if not dialect.caps_scores:  # transformers reads the field of Gemma 3 and does not apply it
        fields.expect(_SCORE_CAP, None)
    cap = _cap(fields, _SCORE_CAP, dialect.caps[0]) if dialect.caps_scores else None
    return ScoreSettings(cap=cap, scale_dim=None if scale_dim == head_dim else scale_dim)


def _cap(fields: ConfigFields, name: str, default: float | None) -> float | None:
    """Null is no cap; an absent field has the type's own."""
    if fields.get(name, default) is None:
        return None
    return fields.positive(name, default or 1.0)


def _positions(fields: ConfigFields, dialect: Dialect, attention: AttentionSettings) -> PositionSettings:
    if dialect.local_base is None:
        base, scaling = read_rotary(fields, dialect.base)
        return PositionSettings(kind="rotary", rotary_base=base, rotary_scaling=scaling)
    base, scaling, local = read_rotary_of_kinds(fields, dialect.base, dialect.local_base)
    banded = local if "banded" in attention.pattern else None
    return PositionSettings(kind="rotary", rotary_base=base, rotary_scaling=scaling, banded_rotary_base=banded)


def _whole(value: float) -> float | int:
    """transformers types the field as a whole number."""
    return int(value) if float(value).is_integer() else value


def plain_scores(settings: ModelSettings) -> ScoreSettings:
    """The settings of scores without what is implied."""
    scores = settings.attention.scores
    return dataclasses.replace(scores, scale_dim=None) if scores.scale_dim == settings.head_dim else scores
