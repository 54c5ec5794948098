"""The tensors of Hugging Face's GPT-1, GPT-2 and Llama, and lmjax's parameters: the same numbers in other shapes.

In and out: float32 arrays, never computed with, so that parameters that go out and come back are the same bit for bit.
A projection of transformers' GPT-1 and GPT-2 is [in, out], and its query, key and value are one matrix; one of Llama
is [out, in]. lmjax's kernels keep heads apart, and keys and values together on an axis of two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.errors import UserError
from lmjax.interop.tensor_files import TensorFiles
from lmjax.model.stack import stack_layers, unstack_layers
from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings

HEAD = "lm_head.weight"
Take = Callable[[str, tuple[int, ...]], np.ndarray]  # a tensor by its name and the shape that it must have
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """How one model type names its tensors; `layer` holds `{}` for the layer's number."""

    prefix: str  # of every name but the head's; a model saved without its head has none
    tokens: str
    positions: str | None
    layer: str
    final_norm: str | None
    read_layer: Callable[[Take, ModelSettings], Params]
    write_layer: Callable[[Params, ModelSettings], Tensors]
    buffers: re.Pattern[str]  # tensors of old files that hold no parameters: causal masks, positions, frequencies


def read_params(files: TensorFiles, settings: ModelSettings, model_type: str, scan_layers: bool) -> Params:
    """The parameters of a model of these settings, layers stacked when `scan_layers`.

    Raises UserError for a tensor that is missing, has another shape or dtype, or belongs to no such model.
    """
    layout = LAYOUTS[model_type]
    prefix = layout.prefix if any(name.startswith(layout.prefix) for name in files.files) else ""
    taken: set[str] = set()

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        taken.add(name)
        return _take(files, name, shape)

    def within(start: str) -> Take:
        return lambda name, shape: take(start + name, shape)

    vocab, width = settings.vocab_size or 0, settings.width
    params: Params = {"tokens": take(prefix + layout.tokens, (vocab, width))}
    if layout.positions:
        params["positions"] = take(prefix + layout.positions, (settings.context, width))
    if layout.final_norm:
        params["final_norm"] = _read_norm(within(prefix), layout.final_norm, settings)
    for i in range(settings.layers):
        layer = layout.read_layer(within(prefix + layout.layer.format(i)), settings)
        params[f"period_{i}"] = {"block_0": layer}
    if not settings.tied_head:
        params["head"] = take(HEAD, (vocab, width))
    elif HEAD in files.files and not np.array_equal(take(HEAD, (vocab, width)), params["tokens"]):
        raise UserError(
            f"{files.files[HEAD]}: {HEAD} differs from {prefix}{layout.tokens}, though the head is tied; "
            "set tie_word_embeddings to false in config.json if the head is one of its own"
        )
    _refuse_others(files, taken, prefix, layout, model_type)
    return stack_layers(params) if scan_layers else params


def write_tensors_of(params: Params, settings: ModelSettings, model_type: str) -> Tensors:
    """The tensors of a model, by the names of `model_type`; the layers of `params` may be stacked or not."""
    layout = LAYOUTS[model_type]
    params = unstack_layers(params) if "periods" in params else params
    tensors = {layout.tokens: _array(params["tokens"])}
    if layout.positions:
        tensors[layout.positions] = _array(params["positions"])
    if layout.final_norm:
        tensors |= _write_norm(layout.final_norm, params["final_norm"])
    period = len(settings.attention.pattern)
    for i in range(settings.layers):
        block = params[f"period_{i // period}"][f"block_{i % period}"]
        start = layout.layer.format(i)
        tensors |= {start + name: value for name, value in layout.write_layer(block, settings).items()}
    tensors = {layout.prefix + name: value for name, value in tensors.items()}
    return tensors if settings.tied_head else tensors | {HEAD: _array(params["head"])}


def _take(files: TensorFiles, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in files.files:
        raise UserError(f"{files.place}: no tensor {name}; expected one of shape {shape}; is config.json this model's?")
    if files.shape(name) != shape:
        raise UserError(
            f"{files.files[name]}: {name} has shape {files.shape(name)}: expected {shape} by config.json; "
            "is it this model's?"
        )
    return files.read(name)


def _refuse_others(files: TensorFiles, taken: set[str], prefix: str, layout: Layout, model_type: str) -> None:
    for name in sorted(set(files.files) - taken):
        if not layout.buffers.fullmatch(name.removeprefix(prefix)):
            raise UserError(
                f"{files.files[name]}: {name} is no part of a {model_type!r} language model of this config.json; "
                "is it this model's? If the tensor belongs to another task's head, save the model without it"
            )


def _read_fused(take: Take, settings: ModelSettings) -> Params:
    """A layer of GPT-1 or GPT-2, whose projections are transformers' Conv1D: [in, out]."""
    D, H, K, F = settings.width, settings.attention.heads, settings.head_dim, settings.feed_forward_width
    qkv, qkv_bias = take("attn.c_attn.weight", (D, 3 * D)), take("attn.c_attn.bias", (3 * D,))
    attention = {
        "query": {"kernel": qkv[:, :D].reshape(D, H, K), "bias": qkv_bias[:D].reshape(H, K)},
        "key_value": {"kernel": qkv[:, D:].reshape(D, 2, H, K), "bias": qkv_bias[D:].reshape(2, H, K)},
        "out": {
            "kernel": take("attn.c_proj.weight", (D, D)).reshape(H, K, D),
            "bias": take("attn.c_proj.bias", (D,)),
        },
    }
    return {
        "attention": attention,
        "attention_norm": _read_norm(take, "ln_1", settings),
        "feed_forward": {
            "up": {"kernel": take("mlp.c_fc.weight", (D, F)), "bias": take("mlp.c_fc.bias", (F,))},
            "down": {"kernel": take("mlp.c_proj.weight", (F, D)), "bias": take("mlp.c_proj.bias", (D,))},
        },
        "feed_forward_norm": _read_norm(take, "ln_2", settings),
    }


def _write_fused(block: Params, settings: ModelSettings) -> Tensors:
    D = settings.width
    query, key_value, out = (block["attention"][name] for name in ("query", "key_value", "out"))
    up, down = block["feed_forward"]["up"], block["feed_forward"]["down"]
    kernels = [_array(part["kernel"]).reshape(D, -1) for part in (query, key_value)]
    biases = [_array(part["bias"]).reshape(-1) for part in (query, key_value)]
    return {
        "attn.c_attn.weight": np.concatenate(kernels, axis=1),
        "attn.c_attn.bias": np.concatenate(biases),
        "attn.c_proj.weight": _array(out["kernel"]).reshape(D, D),
        "attn.c_proj.bias": _array(out["bias"]),
        "mlp.c_fc.weight": _array(up["kernel"]),
        "mlp.c_fc.bias": _array(up["bias"]),
        "mlp.c_proj.weight": _array(down["kernel"]),
        "mlp.c_proj.bias": _array(down["bias"]),
        **_write_norm("ln_1", block["attention_norm"]),
        **_write_norm("ln_2", block["feed_forward_norm"]),
    }


def _read_separate(take: Take, settings: ModelSettings) -> Params:
    """A layer of Llama, whose projections are torch's Linear: [out, in].

    Its "gate" is what the activation is applied to, which lmjax calls "up", and the other way round.
    """
    D, F, K = settings.width, settings.feed_forward_width, settings.head_dim
    H, Hkv = settings.attention.heads, settings.kv_heads

    def dense(name: str, inner: tuple[int, ...], features: tuple[int, ...], bias: bool) -> Params:
        inputs, outputs = int(np.prod(inner)), int(np.prod(features))
        kernel = take(f"{name}.weight", (outputs, inputs)).T.reshape(*inner, *features)
        return {"kernel": kernel} | ({"bias": take(f"{name}.bias", (outputs,)).reshape(features)} if bias else {})

    attends, feeds = settings.attention.bias, settings.feed_forward.bias
    key, value = (dense(f"self_attn.{name}_proj", (D,), (Hkv, K), attends) for name in "kv")
    return {
        "attention": {
            "query": dense("self_attn.q_proj", (D,), (H, K), attends),
            "key_value": {part: np.stack([key[part], value[part]], axis=-3) for part in key},
            "out": dense("self_attn.o_proj", (H, K), (D,), attends),
        },
        "attention_norm": _read_norm(take, "input_layernorm", settings),
        "feed_forward": {
            "up": dense("mlp.gate_proj", (D,), (F,), feeds),
            "gate": dense("mlp.up_proj", (D,), (F,), feeds),
            "down": dense("mlp.down_proj", (F,), (D,), feeds),
        },
        "feed_forward_norm": _read_norm(take, "post_attention_layernorm", settings),
    }


def _write_separate(block: Params, settings: ModelSettings) -> Tensors:
    attention, feed_forward = block["attention"], block["feed_forward"]
    pair = attention["key_value"]
    key, value = ({part: np.take(_array(pair[part]), i, axis=-3) for part in pair} for i in range(2))
    sources = {
        "self_attn.q_proj": attention["query"],
        "self_attn.k_proj": key,
        "self_attn.v_proj": value,
        "self_attn.o_proj": attention["out"],
        "mlp.gate_proj": feed_forward["up"],
        "mlp.up_proj": feed_forward["gate"],
        "mlp.down_proj": feed_forward["down"],
    }
    inputs = {"self_attn.o_proj": settings.attention.heads * settings.head_dim}
    inputs["mlp.down_proj"] = settings.feed_forward_width
    tensors = _write_norm("input_layernorm", block["attention_norm"])
    tensors |= _write_norm("post_attention_layernorm", block["feed_forward_norm"])
    for name, dense in sources.items():
        tensors[f"{name}.weight"] = _array(dense["kernel"]).reshape(inputs.get(name, settings.width), -1).T
        if "bias" in dense:
            tensors[f"{name}.bias"] = _array(dense["bias"]).reshape(-1)
    return tensors


def _read_norm(take: Take, name: str, settings: ModelSettings) -> Params:
    scale = {"scale": take(f"{name}.weight", (settings.width,))}
    bias = {} if settings.norm.kind == "rmsnorm" else {"bias": take(f"{name}.bias", (settings.width,))}
    return {"norm": scale | bias}


def _write_norm(name: str, norm: Params) -> Tensors:
    kinds = {"scale": "weight", "bias": "bias"}
    return {f"{name}.{kinds[part]}": _array(value) for part, value in norm["norm"].items()}


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


LAYOUTS: Mapping[str, Layout] = {
    "openai-gpt": Layout(
        prefix="transformer.",
        tokens="tokens_embed.weight",
        positions="positions_embed.weight",
        layer="h.{}.",
        final_norm=None,
        read_layer=_read_fused,
        write_layer=_write_fused,
        buffers=re.compile(r"h\.\d+\.attn\.bias|position_ids"),
    ),
    "gpt2": Layout(
        prefix="transformer.",
        tokens="wte.weight",
        positions="wpe.weight",
        layer="h.{}.",
        final_norm="ln_f",
        read_layer=_read_fused,
        write_layer=_write_fused,
        buffers=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
    ),
    "llama": Layout(
        prefix="model.",
        tokens="embed_tokens.weight",
        positions=None,
        layer="layers.{}.",
        final_norm="norm",
        read_layer=_read_separate,
        write_layer=_write_separate,
        buffers=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    ),
}
