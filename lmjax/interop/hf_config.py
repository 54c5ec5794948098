"""`config.json` of a Hugging Face folder and lmjax's model settings: what the one says in the words of the other.

Model types: "openai-gpt" (GPT-1), "gpt2", "opt", "llama" and those of its line (`decoder_configs.py`), "bert", "t5".
Every field of a config.json is either understood, known to say nothing about the model, or an error: none is passed
over. A setting that no config.json can say is an error too, found by reading back what was written.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.files import read_json_if_there
from lmjax.interop.config_fields import ACTIVATIONS, ConfigFields, name_of, write_sizes
from lmjax.interop.decoder_configs import DIALECTS, plain_scores, read_decoder, write_decoder
from lmjax.interop.encoder_configs import labels_of, read_bert, read_t5, task_of, write_bert, write_t5
from lmjax.interop.rotary_fields import implied
from lmjax.settings import (
    AttentionSettings,
    FeedForwardSettings,
    ModelSettings,
    MuPSettings,
    NormSettings,
    PositionSettings,
)

CONFIG = "config.json"

# In GPT-1's config alone "gelu" is the tanh approximation.
_GPT1_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

_BY_TENSORS = ("model.head.pooler",)  # said by the tensors of a folder, not by its config.json


@dataclass(frozen=True)
class HuggingFaceConfig:
    """A config.json that was understood. The ids are None where it names none."""

    model_type: str
    settings: ModelSettings
    bos_id: int | None
    eos_id: int | None
    unread: tuple[str, ...] = ()  # null or private fields that say nothing lmjax knows
    task: str | None = None  # the kind of the head of a task that the folder holds, as `TaskHead` names it
    labels: tuple[str, ...] = ()  # the names of the task's classes
    problem: str = ""  # what the task learns of its outputs, in transformers' words; "" where it does not say


def read_config(folder: Path) -> HuggingFaceConfig:
    """Reads `folder`/config.json. Raises UserError naming the file and the first field that lmjax cannot follow."""
    path = folder / CONFIG
    values = read_json_if_there(path, dict[str, Any], "copy it again")
    if values is None:
        raise UserError(f"{path}: no such file; expected a folder of config.json and model.safetensors")
    return parse_config(values, path)


def parse_config(values: Mapping[str, Any], where: object) -> HuggingFaceConfig:
    """The meaning of the fields of a config.json; `where` names it in errors."""
    fields = ConfigFields(values, where)
    model_type = fields.get("model_type", None)
    if not isinstance(model_type, str) or model_type not in _READERS:
        spelled = {_letters(name): name for name in _READERS}.get(_letters(model_type))
        fix = f"did you mean {spelled!r}?" if spelled else "lmjax reads no others"
        if fields.has("text_config"):
            fix = "its text_config is that of a text model: save that model alone"
        raise fields.error("model_type", f"one of {', '.join(map(repr, _READERS))}", fix)
    try:
        settings = _READERS[model_type](fields)
    except UserError as error:
        raise error if str(error).startswith(str(where)) else UserError(f"{where}: {error}") from error
    bos_id, eos_id = _first_id(values, "bos_token_id"), _first_id(values, "eos_token_id")
    task = task_of(values.get("architectures")) if model_type == "bert" else None
    labels = labels_of(values.get("id2label")) if task else ()
    problem = str(values.get("problem_type") or "")
    return HuggingFaceConfig(model_type, settings, bos_id, eos_id, fields.finish(), task, labels, problem)


def write_config(
    settings: ModelSettings, eos_id: int | None, task: str | None = None, labels: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of the config.json of a model; `eos_id` separates its documents.

    `task` is the kind of a task's head beside it, and `labels` its classes.

    Raises UserError naming the settings that the nearest model type has not.
    """
    obstacles = {}
    for model_type in _WRITERS:
        config: dict[str, Any] = {"model_type": model_type, **_WRITERS[model_type](settings, task)}
        obstacles[model_type] = _obstacles(settings, config)
        if not obstacles[model_type]:
            if task == "sequence" and not labels:  # transformers makes two outputs where no label is named
                config |= {"problem_type": "regression", "id2label": {"0": "LABEL_0"}}
            if labels:
                config["id2label"] = {str(index): name for index, name in enumerate(labels)}
                config["label2id"] = {name: index for index, name in enumerate(labels)}
            return config | {"bos_token_id": eos_id, "eos_token_id": eos_id, "dtype": "float32"}
    nearest_type = min(obstacles, key=lambda name: len(obstacles[name]))
    raise UserError(
        f"{', '.join(obstacles[nearest_type])}, the only values of Hugging Face's {nearest_type!r}, the nearest of "
        f"{', '.join(_WRITERS)}; this model cannot be exported"
    )


def _obstacles(settings: ModelSettings, config: Mapping[str, Any]) -> list[str]:
    """What is lost between settings and the config written of them, found by reading it back."""
    try:
        back = _flat(_canonical(parse_config(config, CONFIG).settings))
    except UserError as error:
        return [str(error)]
    pairs = (
        (name, value, back[name]) for name, value in _flat(_canonical(settings)).items() if name not in _BY_TENSORS
    )
    return [f"{name} = {value!r}: expected {only!r}" for name, value, only in pairs if value != only]


def _read_gpt1(fields: ConfigFields) -> ModelSettings:
    fields.expect("n_special", 0)
    return ModelSettings(
        layers=fields.size("n_layer"),
        width=fields.size("n_embd"),
        context=_context(fields),
        vocab_size=fields.size("vocab_size"),
        attention=AttentionSettings(
            heads=fields.divisor("n_head", "n_embd"), dropout=fields.fraction("attn_pdrop", 0.1)
        ),
        feed_forward=FeedForwardSettings(activation=fields.choice("afn", "gelu", _GPT1_ACTIVATIONS)),
        norm=NormSettings(eps=fields.positive("layer_norm_epsilon", 1e-5), position="post", final=False),
        tied_head=fields.flag("tie_word_embeddings", True),
        dropout=_dropout(fields),
        init_std=fields.positive("initializer_range", 0.02),
        scaled_residual_init=False,
    )


def _write_gpt1(settings: ModelSettings) -> dict[str, Any]:
    activation = name_of(settings, _GPT1_ACTIVATIONS)
    return {"architectures": ["OpenAIGPTLMHeadModel"], "afn": activation} | _write_gpt(settings)


def _read_gpt2(fields: ConfigFields) -> ModelSettings:
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    heads, scaled = fields.divisor("n_head", "n_embd"), fields.flag("scale_attn_weights", True)
    activation = fields.choice("activation_function", "gelu_new", ACTIVATIONS)
    return ModelSettings(
        layers=fields.size("n_layer"),
        width=fields.size("n_embd"),
        context=_context(fields),
        vocab_size=fields.size("vocab_size"),
        attention=AttentionSettings(heads=heads, scaled=scaled, dropout=fields.fraction("attn_pdrop", 0.1)),
        feed_forward=FeedForwardSettings(
            width=fields.size("n_inner") if fields.has("n_inner") else None, activation=activation
        ),
        norm=NormSettings(eps=fields.positive("layer_norm_epsilon", 1e-5)),
        tied_head=fields.flag("tie_word_embeddings", True),
        dropout=_dropout(fields),
        init_std=fields.positive("initializer_range", 0.02),
    )


def _write_gpt2(settings: ModelSettings) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": name_of(settings, ACTIVATIONS),
        "n_inner": settings.feed_forward.width,
        "scale_attn_weights": settings.attention.scaled,
        "scale_attn_by_inverse_layer_idx": False,
    } | _write_gpt(settings)


def _read_opt(fields: ConfigFields) -> ModelSettings:
    """OPT (Zhang et al. 2022); the 350M alone has norms behind its branches and narrower embeddings, and is refused.

    lmjax's embeddings have the branches' dropout, OPT's none: that is of training alone.
    """
    sizes = fields.sizes()
    for name in ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"):
        fields.expect(name, True)
    for name in ("layerdrop", "activation_dropout"):
        fields.expect(name, 0.0)
    fields.expect("_remove_final_layer_norm", False)
    fields.expect("word_embed_proj_dim", sizes["width"])
    return ModelSettings(
        **sizes,
        attention=AttentionSettings(
            heads=fields.divisor("num_attention_heads", "hidden_size"),
            dropout=fields.fraction("attention_dropout", 0.0),
        ),
        feed_forward=FeedForwardSettings(
            width=fields.size("ffn_dim"), activation=fields.choice("activation_function", "relu", {"relu": "relu"})
        ),
        tied_head=fields.flag("tie_word_embeddings", True),
        dropout=fields.fraction("dropout", 0.1),
        init_std=fields.positive("init_std", 0.02),
        scaled_residual_init=False,
    )


def _write_opt(settings: ModelSettings) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        **write_sizes(settings),
        "word_embed_proj_dim": settings.width,
        "ffn_dim": settings.feed_forward_width,
        "num_attention_heads": settings.attention.heads,
        "attention_dropout": settings.attention.dropout,
        "dropout": settings.dropout,
        "activation_function": "relu",
        "init_std": settings.init_std,
        "tie_word_embeddings": settings.tied_head,
        "pad_token_id": None,  # else transformers takes 1, which may be beyond the vocabulary
    }


def _write_gpt(settings: ModelSettings) -> dict[str, Any]:
    return {
        "n_layer": settings.layers,
        "n_embd": settings.width,
        "n_head": settings.attention.heads,
        "n_positions": settings.context,
        "vocab_size": settings.vocab_size,
        "attn_pdrop": settings.attention.dropout,
        "embd_pdrop": settings.dropout,
        "resid_pdrop": settings.dropout,
        "layer_norm_epsilon": settings.norm.eps,
        "initializer_range": settings.init_std,
        "tie_word_embeddings": settings.tied_head,
    }


def _write_decoder(model_type: str, settings: ModelSettings, _: str | None) -> dict[str, Any]:
    return write_decoder(model_type, settings)


_READERS: dict[str, Callable[[ConfigFields], ModelSettings]] = {
    "openai-gpt": _read_gpt1,
    "gpt2": _read_gpt2,
    "opt": _read_opt,
    **{name: functools.partial(read_decoder, name) for name in DIALECTS},
    "bert": read_bert,
    "t5": read_t5,
}
_WRITERS: dict[str, Callable[[ModelSettings, str | None], dict[str, Any]]] = {
    "opt": lambda settings, _: _write_opt(settings),  # before GPT-2, which can say all that OPT can
    "gpt2": lambda settings, _: _write_gpt2(settings),
    "openai-gpt": lambda settings, _: _write_gpt1(settings),
    **{name: functools.partial(_write_decoder, name) for name in DIALECTS},
    "bert": write_bert,
    "t5": lambda settings, _: write_t5(settings),
}


def _context(fields: ConfigFields) -> int:
    size = fields.size("n_positions")
    fields.expect("n_ctx", size)  # an old second name
    return size


def _dropout(fields: ConfigFields) -> float:
    """lmjax has one rate for the embeddings and the residual branches."""
    rate = fields.fraction("resid_pdrop", 0.1)
    if fields.fraction("embd_pdrop", 0.1) != rate:
        raise fields.error("embd_pdrop", f"resid_pdrop's {rate}", "lmjax has one dropout for both: give both one value")
    return rate


def _letters(name: Any) -> str:
    return "".join(filter(str.isalnum, str(name))).lower()


def _canonical(settings: ModelSettings) -> ModelSettings:
    """Equal for settings that compute the same function: what is implied is written out, what is unused is reset."""
    attention, positions, norm = settings.attention, settings.positions, settings.norm
    covered = (attention.band or 0) >= settings.context and "nope" not in attention.pattern
    covered = covered and positions.banded_rotary_base is None
    dense = all(kind == "dense" for kind in attention.pattern) or covered
    attention = dataclasses.replace(
        attention,
        kv_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        pattern=("dense",) if dense else attention.pattern,
        band=None if dense else attention.band,
        out_bias=None if attention.has_out_bias == attention.bias else attention.has_out_bias,
        scores=plain_scores(settings),
        implementation="auto",
    )
    if positions.kind == "learned":
        positions = PositionSettings(segment_types=positions.segment_types)
    elif positions.kind == "rotary":
        scaling, local = implied(positions.rotary_scaling, settings.context), positions.banded_rotary_base
        banded = "banded" in attention.pattern and (local, scaling.kind) != (positions.rotary_base, "none")
        positions = PositionSettings(
            kind="rotary",
            rotary_base=positions.rotary_base,
            rotary_scaling=scaling,
            banded_rotary_base=local if banded else None,
        )
    computes_alike = settings.base_ratio == 1 and settings.base_head_dim == settings.head_dim
    return dataclasses.replace(
        settings,
        attention=attention,
        feed_forward=dataclasses.replace(settings.feed_forward, width=settings.feed_forward_width),
        norm=dataclasses.replace(norm, bias=norm.bias or norm.kind == "rmsnorm"),
        positions=positions,
        scaled_residual_init=False,  # of how training began, which a trained model no longer shows
        init_std=None if settings.encoder_layers else settings.init_std,
        mup=MuPSettings() if computes_alike else settings.mup,
    )


def _flat(settings: Any, prefix: str = "model") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}.{field.name}"
        flat |= _flat(value, name) if dataclasses.is_dataclass(value) else {name: value}
    return flat


def _first_id(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None
