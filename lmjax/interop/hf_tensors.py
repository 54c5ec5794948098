"""The tensors of Hugging Face's GPTs, OPT and Llama's line, and lmjax's parameters: the same numbers in other shapes.

In and out: float32 arrays, never computed with, so that parameters that go out and come back are the same bit for bit.
A projection of transformers' GPT-1 and GPT-2 is [in, out], and its query, key and value are one matrix; one of the
others is [out, in]. lmjax's kernels keep heads apart, and keys and values together on an axis of two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.interop.decoder_configs import DIALECTS
from lmjax.interop.linears import (
    Take,
    Tensors,
    array,
    paired,
    part_of,
    read_linear,
    read_norm,
    write_linear,
    write_norm,
)
from lmjax.interop.tensor_files import TakenTensors, TensorFiles
from lmjax.model.stack import stack_layers, unstack_layers
from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings

HEAD = "lm_head.weight"
_QK_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Names:
    """What a type with separate projections calls a layer's output projection, its feed-forward matrices and norms.

    norms: by where they stand (`NormSettings.position`).
    """

    out: str
    feed_forward: Mapping[str, str]
    norms: Mapping[str, Mapping[str, str]]


# Llama's "gate" is what the activation is applied to, which lmjax calls "up", and the other way round.
_LLAMA_NAMES = Names(
    out="self_attn.o_proj",
    feed_forward={"up": "mlp.gate_proj", "gate": "mlp.up_proj", "down": "mlp.down_proj"},
    norms={
        "pre": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
        "sandwich": {
            "attention_norm": "input_layernorm",
            "attention_output_norm": "post_attention_layernorm",
            "feed_forward_norm": "pre_feedforward_layernorm",
            "feed_forward_output_norm": "post_feedforward_layernorm",
        },
        "branch_output": {
            "attention_output_norm": "post_attention_layernorm",
            "feed_forward_output_norm": "post_feedforward_layernorm",
        },
    },
)
_OPT_NAMES = Names(
    out="self_attn.out_proj",
    feed_forward={"up": "fc1", "down": "fc2"},
    norms={"pre": {"attention_norm": "self_attn_layer_norm", "feed_forward_norm": "final_layer_norm"}},
)


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
    positions_before: int = 0  # rows of the table that come before that of the first token, which no row of text reads


def read_params(files: TensorFiles, settings: ModelSettings, model_type: str, scan_layers: bool) -> Params:
    """The parameters of a model of these settings, layers stacked when `scan_layers`.

    Raises UserError for a tensor that is missing, has another shape or dtype, or belongs to no such model.
    """
    take = TakenTensors(files)
    layout = LAYOUTS[model_type]
    prefix = layout.prefix if any(name.startswith(layout.prefix) for name in files.files) else ""

    def within(start: str) -> Take:
        return lambda name, shape: take(start + name, shape)

    vocab, width = settings.vocab_size or 0, settings.width
    params: Params = {"tokens": take(prefix + layout.tokens, (vocab, width))}
    if layout.positions:
        rows = take(prefix + layout.positions, (layout.positions_before + settings.context, width))
        params["positions"] = rows[layout.positions_before :]
    if layout.final_norm:
        params["final_norm"] = read_norm(within(prefix), layout.final_norm, settings)
    period = len(settings.attention.pattern)
    for i in range(settings.layers):
        layer = layout.read_layer(within(prefix + layout.layer.format(i)), settings)
        params.setdefault(f"period_{i // period}", {})[f"block_{i % period}"] = layer
    if not settings.tied_head:
        params["head"] = take(HEAD, (vocab, width))
    else:
        fix = "though the head is tied; set tie_word_embeddings to false in config.json if the head is one of its own"
        take.same(HEAD, prefix + layout.tokens, (vocab, width), fix)
    take.refuse_others(layout.buffers, prefix, model_type)
    return stack_layers(params) if scan_layers else params


def write_tensors_of(params: Params, settings: ModelSettings, model_type: str) -> Tensors:
    """The tensors of a model, by the names of `model_type`; the layers of `params` may be stacked or not."""
    layout = LAYOUTS[model_type]
    params = unstack_layers(params) if "periods" in params else params
    tensors = {layout.tokens: array(params["tokens"])}
    if layout.positions:
        tensors[layout.positions] = np.pad(array(params["positions"]), ((layout.positions_before, 0), (0, 0)))
    if layout.final_norm:
        tensors |= write_norm(layout.final_norm, params["final_norm"])
    period = len(settings.attention.pattern)
    for i in range(settings.layers):
        block = params[f"period_{i // period}"][f"block_{i % period}"]
        start = layout.layer.format(i)
        tensors |= {start + name: value for name, value in layout.write_layer(block, settings).items()}
    tensors = {layout.prefix + name: value for name, value in tensors.items()}
    return tensors if settings.tied_head else tensors | {HEAD: array(params["head"])}


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
        "attention_norm": read_norm(take, "ln_1", settings),
        "feed_forward": {
            "up": {"kernel": take("mlp.c_fc.weight", (D, F)), "bias": take("mlp.c_fc.bias", (F,))},
            "down": {"kernel": take("mlp.c_proj.weight", (F, D)), "bias": take("mlp.c_proj.bias", (D,))},
        },
        "feed_forward_norm": read_norm(take, "ln_2", settings),
    }


def _write_fused(block: Params, settings: ModelSettings) -> Tensors:
    D = settings.width
    query, key_value, out = (block["attention"][name] for name in ("query", "key_value", "out"))
    up, down = block["feed_forward"]["up"], block["feed_forward"]["down"]
    kernels = [array(part["kernel"]).reshape(D, -1) for part in (query, key_value)]
    biases = [array(part["bias"]).reshape(-1) for part in (query, key_value)]
    return {
        "attn.c_attn.weight": np.concatenate(kernels, axis=1),
        "attn.c_attn.bias": np.concatenate(biases),
        "attn.c_proj.weight": array(out["kernel"]).reshape(D, D),
        "attn.c_proj.bias": array(out["bias"]),
        "mlp.c_fc.weight": array(up["kernel"]),
        "mlp.c_fc.bias": array(up["bias"]),
        "mlp.c_proj.weight": array(down["kernel"]),
        "mlp.c_proj.bias": array(down["bias"]),
        **write_norm("ln_1", block["attention_norm"]),
        **write_norm("ln_2", block["feed_forward_norm"]),
    }


def _read_separate(names: Names, take: Take, settings: ModelSettings) -> Params:
    """A layer of Llama's line or of OPT, whose projections are torch's Linear: [out, in]."""
    D, F, K = settings.width, settings.feed_forward_width, settings.head_dim
    H, Hkv = settings.attention.heads, settings.kv_heads
    dense = functools.partial(read_linear, take)
    attends, feeds = settings.attention.bias, settings.feed_forward.bias
    key, value = (dense(f"self_attn.{name}_proj", (D,), (Hkv, K), attends) for name in "kv")
    attention = {
        "query": dense("self_attn.q_proj", (D,), (H, K), attends),
        "key_value": paired(key, value),
        "out": dense(names.out, (H, K), (D,), settings.attention.has_out_bias),
    }
    if settings.attention.qk_norm != "none":
        heads = (H, Hkv) if settings.attention.qk_norm == "projection" else (1, 1)
        for (ours, theirs), count in zip(_QK_NORMS.items(), heads, strict=True):
            attention[ours] = read_norm(take, theirs, settings, count * K)
    sizes = {"up": (D, F), "gate": (D, F), "down": (F, D)}
    feed_forward = {}
    for ours, theirs in names.feed_forward.items():
        inputs, outputs = sizes[ours]
        feed_forward[ours] = dense(theirs, (inputs,), (outputs,), feeds)
    norms = names.norms[settings.norm.position].items()
    return {
        "attention": attention,
        **{ours: read_norm(take, theirs, settings) for ours, theirs in norms},
        "feed_forward": feed_forward,
    }


def _write_separate(names: Names, block: Params, settings: ModelSettings) -> Tensors:
    attention, feed_forward = block["attention"], block["feed_forward"]
    key, value = (part_of(attention["key_value"], i) for i in range(2))
    projections = {"q": attention["query"], "k": key, "v": value}
    tensors: Tensors = write_linear(names.out, attention["out"], inner=2)
    for name, dense in projections.items():
        tensors |= write_linear(f"self_attn.{name}_proj", dense)
    for ours, theirs in names.feed_forward.items():
        tensors |= write_linear(theirs, feed_forward[ours])
    for ours, theirs in names.norms[settings.norm.position].items():
        tensors |= write_norm(theirs, block[ours])
    for ours, theirs in _QK_NORMS.items():
        tensors |= write_norm(theirs, attention[ours]) if ours in attention else {}
    return tensors


_LLAMA = Layout(
    prefix="model.",
    tokens="embed_tokens.weight",
    positions=None,
    layer="layers.{}.",
    final_norm="norm",
    read_layer=functools.partial(_read_separate, _LLAMA_NAMES),
    write_layer=functools.partial(_write_separate, _LLAMA_NAMES),
    buffers=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
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
    "opt": Layout(
        prefix="model.decoder.",
        tokens="embed_tokens.weight",
        positions="embed_positions.weight",
        positions_before=2,  # padding's, and one that fairseq left free
        layer="layers.{}.",
        final_norm="final_layer_norm",
        read_layer=functools.partial(_read_separate, _OPT_NAMES),
        write_layer=functools.partial(_write_separate, _OPT_NAMES),
        buffers=re.compile(r"version"),
    ),
    **dict.fromkeys(DIALECTS, _LLAMA),
}
