"""The tensors of Hugging Face's T5, versions 1.0 and 1.1, and lmjax's parameters: the same numbers in other shapes.

The bias of positions is stored in the first layer of each stack. Of the two matrices of a gated layer, "wi_0" is what
the activation is applied to, which lmjax calls "up".
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

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
from lmjax.interop.tensor_files import TakenTensors
from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings

_TOKENS, _HEAD = "shared.weight", "lm_head.weight"
_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
# Old files of version 1.1 hold a bias of the first layer's cross-attention, which is added to nothing.
_BUFFERS = re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")


def read_t5(take: TakenTensors, settings: ModelSettings) -> tuple[ModelSettings, Params]:
    """The parameters, with a tree for each layer, and the settings of what is there.

    Whether the head is a table of its own, its tensor says: transformers 5 writes tie_word_embeddings = true for both.
    Raises UserError.
    """
    vocab, width = settings.vocab_size or 0, settings.width
    params: Params = {"tokens": take(_TOKENS, (vocab, width))}
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        take.same(copy, _TOKENS, (vocab, width), "of which it is a copy; lmjax has one table for both stacks")
    own = take.has(_HEAD) and not np.array_equal(take(_HEAD, (vocab, width)), params["tokens"])
    settings = dataclasses.replace(settings, tied_head=settings.tied_head and not own)
    if not settings.tied_head:
        params["head"] = take(_HEAD, (vocab, width))
    for name, layers in (("encoder", settings.encoder_layers or 0), ("decoder", settings.layers)):
        params[name] = _read_stack(take, settings, name, layers)
    take.refuse_others(_BUFFERS, "", "t5")
    return settings, params


def write_t5(params: Params, settings: ModelSettings) -> Tensors:
    """The tensors of a model whose parameters have a tree for each layer."""
    tensors = {_TOKENS: array(params["tokens"])}
    period = len(settings.attention.pattern)
    for name, layers in (("encoder", settings.encoder_layers or 0), ("decoder", settings.layers)):
        stack = params[name]
        tensors[f"{name}.{_RELATIVE}"] = array(stack["relative_bias"]["table"])
        tensors |= write_norm(f"{name}.final_layer_norm", stack["final_norm"])
        for i in range(layers):
            block = stack[f"period_{i // period}"][f"block_{i % period}"]
            tensors |= {f"{name}.block.{i}.{key}": value for key, value in _write_layer(block).items()}
    return tensors if settings.tied_head else tensors | {_HEAD: array(params["head"])}


def _read_stack(take: TakenTensors, settings: ModelSettings, name: str, layers: int) -> Params:
    shape = (settings.positions.relative_buckets, settings.attention.heads)
    stack: Params = {
        "relative_bias": {"table": take(f"{name}.{_RELATIVE}", shape)},
        "final_norm": read_norm(take, f"{name}.final_layer_norm", settings),
    }
    for i in range(layers):
        start = f"{name}.block.{i}."

        def layer(tensor: str, shape: tuple[int, ...], start: str = start) -> np.ndarray:
            return take(start + tensor, shape)

        stack[f"period_{i}"] = {"block_0": _read_layer(layer, settings, crosses=name == "decoder")}
    return stack


def _read_layer(take: Take, settings: ModelSettings, crosses: bool) -> Params:
    D, F = settings.width, settings.feed_forward_width
    last, products = f"layer.{1 + crosses}", {"up": "wi"}
    if settings.feed_forward.gated:
        products = {"up": "wi_0", "gate": "wi_1"}
    place = f"{last}.DenseReluDense"
    feeds = {ours: read_linear(take, f"{place}.{name}", (D,), (F,), bias=False) for ours, name in products.items()}
    block: Params = {
        "attention": _read_attention(take, settings, "layer.0.SelfAttention"),
        "attention_norm": read_norm(take, "layer.0.layer_norm", settings),
        "feed_forward": feeds | {"down": read_linear(take, f"{place}.wo", (F,), (D,), bias=False)},
        "feed_forward_norm": read_norm(take, f"{last}.layer_norm", settings),
    }
    if crosses:
        block["cross_attention"] = _read_attention(take, settings, "layer.1.EncDecAttention")
        block["cross_norm"] = read_norm(take, "layer.1.layer_norm", settings)
    return block


def _read_attention(take: Take, settings: ModelSettings, place: str) -> Params:
    D, H, K = settings.width, settings.attention.heads, settings.head_dim
    query, key, value = (read_linear(take, f"{place}.{name}", (D,), (H, K), bias=False) for name in "qkv")
    out = read_linear(take, f"{place}.o", (H, K), (D,), bias=False)
    return {"query": query, "key_value": paired(key, value), "out": out}


def _write_layer(block: Params) -> Tensors:
    crosses, feeds = "cross_attention" in block, block["feed_forward"]
    last = f"layer.{1 + crosses}"
    names = {"up": "wi_0" if "gate" in feeds else "wi", "gate": "wi_1", "down": "wo"}
    tensors = _write_attention(block["attention"], "layer.0.SelfAttention")
    tensors |= write_norm("layer.0.layer_norm", block["attention_norm"])
    if crosses:
        tensors |= _write_attention(block["cross_attention"], "layer.1.EncDecAttention")
        tensors |= write_norm("layer.1.layer_norm", block["cross_norm"])
    for ours, dense in feeds.items():
        tensors |= write_linear(f"{last}.DenseReluDense.{names[ours]}", dense)
    return tensors | write_norm(f"{last}.layer_norm", block["feed_forward_norm"])


def _write_attention(attention: Params, place: str) -> Tensors:
    key, value = (part_of(attention["key_value"], index) for index in range(2))
    tensors = write_linear(f"{place}.q", attention["query"]) | write_linear(f"{place}.k", key)
    return tensors | write_linear(f"{place}.v", value) | write_linear(f"{place}.o", attention["out"], 2)
