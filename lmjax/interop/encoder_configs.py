"""`config.json` of BERT and of T5, and lmjax's model settings: what the one says in the words of the other."""

from __future__ import annotations

from typing import Any

from lmjax.interop.config_fields import ACTIVATIONS, ConfigFields, name_of, write_sizes
from lmjax.settings import (
    AttentionSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
)

# The classes of BERT in transformers: whether they hold the masked language model's head, and the head of which task.
# Which of them hold a pooler, their tensors say.
ARCHITECTURES: dict[str, tuple[bool, str | None]] = {
    "BertModel": (False, None),
    "BertForPreTraining": (True, "next_sentence"),
    "BertForMaskedLM": (True, None),
    "BertForNextSentencePrediction": (False, "next_sentence"),
    "BertForSequenceClassification": (False, "sequence"),
    "BertForMultipleChoice": (False, "choice"),
    "BertForTokenClassification": (False, "tokens"),
    "BertForQuestionAnswering": (False, "span"),
}
# Fields of old files that say nothing of what lmjax computes.
_OLD = ("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type")

_T5_ACTIVATIONS = {
    "relu": ("relu", False),
    "gelu": ("gelu_erf", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),  # transformers' own exception: its "gelu" is the exact function
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}


def task_of(architectures: Any) -> str | None:
    """The kind of the task's head that a config.json names, or None."""
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    return ARCHITECTURES.get(name, (False, None))[1] if isinstance(name, str) else None


def labels_of(id2label: Any) -> tuple[str, ...]:
    """The names of classes, in their order; () where the field does not say them one by one."""
    if not isinstance(id2label, dict):
        return ()
    names = tuple(id2label.get(str(index)) for index in range(len(id2label)))
    return tuple(str(name) for name in names) if all(isinstance(name, str) for name in names) else ()


def read_bert(fields: ConfigFields) -> ModelSettings:
    for name, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("directionality", "bidi")):
        fields.expect(name, only)
    for name in _OLD:
        fields.get(name, None)
    dropout = fields.fraction("hidden_dropout_prob", 0.1)
    if fields.has("classifier_dropout") and fields.fraction("classifier_dropout", dropout) != dropout:
        fix = "lmjax has one dropout for both: give both one value"
        raise fields.error("classifier_dropout", f"null or hidden_dropout_prob's {dropout}", fix)
    names = fields.get("architectures", None) or ["BertModel"]
    if not isinstance(names, list) or not isinstance(names[0], str) or names[0] not in ARCHITECTURES:
        raise fields.error("architectures", f"one of {', '.join(ARCHITECTURES)}", "lmjax reads no others")
    masked, _ = ARCHITECTURES[names[0]]
    sizes, inner = fields.sizes(), fields.size("intermediate_size")
    return ModelSettings(
        **sizes,
        attention=AttentionSettings(
            heads=fields.divisor("num_attention_heads", "hidden_size"),
            causal=False,
            dropout=fields.fraction("attention_probs_dropout_prob", 0.1),
        ),
        feed_forward=FeedForwardSettings(
            width=None if inner == 4 * sizes["width"] else inner,
            activation=fields.choice("hidden_act", "gelu", ACTIVATIONS),
        ),
        norm=NormSettings(eps=fields.positive("layer_norm_eps", 1e-12), position="post", final=False, embeddings=True),
        positions=PositionSettings(segment_types=fields.size("type_vocab_size")),
        tied_head=fields.flag("tie_word_embeddings", True),
        dropout=dropout,
        init_std=fields.positive("initializer_range", 0.02),
        scaled_residual_init=False,
        head=HeadSettings(transform=masked, bias=masked, pooler=True),
    )


def write_bert(settings: ModelSettings, kind: str | None) -> dict[str, Any]:
    """`kind` is that of the task's head, or None."""
    found = (settings.head.transform, kind)
    if found == (True, None) and settings.head.pooler:
        found = (True, "next_sentence")
    names = [name for name, holds in ARCHITECTURES.items() if holds == found] or ["BertModel"]
    return {
        "architectures": names[:1],
        **write_sizes(settings),
        "num_attention_heads": settings.attention.heads,
        "intermediate_size": settings.feed_forward_width,
        "hidden_act": name_of(settings, ACTIVATIONS),
        "type_vocab_size": settings.positions.segment_types or 1,
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.attention.dropout,
        "layer_norm_eps": settings.norm.eps,
        "initializer_range": settings.init_std or 0.02,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": settings.tied_head,
        "pad_token_id": 0,
    }


def read_t5(fields: ConfigFields) -> ModelSettings:
    for name, only in (("is_encoder_decoder", True), ("is_decoder", False)):
        fields.expect(name, only)
    for name in ("initializer_factor", "classifier_dropout", "dense_act_fn", "is_gated_act"):
        fields.get(name, None)  # of how training began, of other heads, and what feed_forward_proj says already
    activation, gated = fields.choice("feed_forward_proj", "relu", _T5_ACTIVATIONS)
    tied, layers = fields.flag("tie_word_embeddings", True), fields.size("num_layers")
    sizes = {
        name: fields.size(name) if fields.has(name) else default
        for name, default in (
            *(("num_decoder_layers", layers), ("n_positions", 512)),
            *(("relative_attention_num_buckets", 32), ("relative_attention_max_distance", 128)),
        )
    }
    return ModelSettings(
        layers=sizes["num_decoder_layers"],
        encoder_layers=layers,
        width=fields.size("d_model"),
        context=sizes["n_positions"],
        vocab_size=fields.size("vocab_size"),
        attention=AttentionSettings(
            heads=fields.size("num_heads"), head_dim=fields.size("d_kv"), bias=False, scaled=False
        ),
        feed_forward=FeedForwardSettings(width=fields.size("d_ff"), activation=activation, gated=gated, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=fields.positive("layer_norm_epsilon", 1e-6)),
        positions=PositionSettings(
            kind="relative",
            relative_buckets=sizes["relative_attention_num_buckets"],
            relative_max_distance=sizes["relative_attention_max_distance"],
        ),
        tied_head=tied,
        dropout=fields.fraction("dropout_rate", 0.1),
        init_std=None,
        scaled_residual_init=False,
        head=HeadSettings(scaled=fields.flag("scale_decoder_outputs", tied)),
    )


def write_t5(settings: ModelSettings) -> dict[str, Any]:
    shape = (settings.feed_forward.activation, settings.feed_forward.gated)
    names = {meaning: name for name, meaning in list(_T5_ACTIVATIONS.items())[::-1]}
    positions = settings.positions
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": settings.encoder_layers or settings.layers,
        "num_decoder_layers": settings.layers,
        "d_model": settings.width,
        "d_kv": settings.head_dim,
        "d_ff": settings.feed_forward_width,
        "num_heads": settings.attention.heads,
        "vocab_size": settings.vocab_size,
        "n_positions": settings.context,
        "feed_forward_proj": names.get(shape, "relu"),
        "relative_attention_num_buckets": positions.relative_buckets,
        "relative_attention_max_distance": positions.relative_max_distance,
        "dropout_rate": settings.dropout,
        "layer_norm_epsilon": settings.norm.eps,
        "tie_word_embeddings": settings.tied_head,
        "scale_decoder_outputs": settings.head.scaled,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
