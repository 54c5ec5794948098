"""The tensors of Hugging Face's BERT, with its heads, and lmjax's parameters: the same numbers in other shapes."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from lmjax.interop.linears import (
    Take,
    TaskHead,
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

BERT = "bert."  # the prefix of every name but the heads'; a model saved without heads has none
_POOLER, _TRANSFORM = "pooler.dense", "cls.predictions.transform"
_TABLE, _BIAS, _OTHER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias", "cls.predictions.decoder.bias"
_HEADS = {
    "next_sentence": "cls.seq_relationship",
    "sequence": "classifier",
    "choice": "classifier",
    "tokens": "classifier",
    "span": "qa_outputs",
}
_BUFFERS = re.compile(r"embeddings\.position_ids")


def read_bert(
    take: TakenTensors, settings: ModelSettings, kind: str | None, labels: tuple[str, ...]
) -> tuple[ModelSettings, Params, TaskHead | None]:
    """The parameters, with a tree for each layer, the head of a task of this kind, and the settings of what is there.

    Which of the pooler and the masked language model's head a file has, its tensors say. Raises UserError.
    """
    prefix = BERT if take.has(f"{BERT}embeddings.word_embeddings.weight") else ""
    head = dataclasses.replace(
        settings.head,
        pooler=take.has(f"{prefix}{_POOLER}.weight"),
        transform=take.has(f"{_TRANSFORM}.dense.weight"),
        bias=take.has(f"{_TRANSFORM}.dense.weight"),
    )
    settings = dataclasses.replace(settings, head=head)
    within = _older_norms(take, prefix)
    vocab, width = settings.vocab_size or 0, settings.width
    sizes = {"word": vocab, "position": settings.context, "token_type": settings.positions.segment_types}
    tokens, positions, types = (
        within(f"embeddings.{name}_embeddings.weight", (size, width)) for name, size in sizes.items()
    )
    params: Params = {"tokens": tokens, "positions": positions, "segment_types": types}
    params["embedding_norm"] = read_norm(within, "embeddings.LayerNorm", settings)
    for i in range(settings.layers):
        layer = functools.partial(_below, within, f"encoder.layer.{i}.")
        params[f"period_{i}"] = {"block_0": _read_layer(layer, settings)}
    if head.pooler:
        params["pooler"] = {"dense": read_linear(within, _POOLER, (width,), (width,), bias=True)}
    if head.transform:
        params |= _read_vocabulary(take, settings, f"{prefix}embeddings.word_embeddings.weight")
    found = None if kind is None else _read_head(take, settings, kind, labels)
    take.refuse_others(_BUFFERS, prefix, "bert")
    return settings, params, found


def write_bert(params: Params, settings: ModelSettings, head: TaskHead | None) -> Tensors:
    """The tensors of a model whose parameters have a tree for each layer."""
    tensors = {
        "embeddings.word_embeddings.weight": array(params["tokens"]),
        "embeddings.position_embeddings.weight": array(params["positions"]),
        "embeddings.token_type_embeddings.weight": array(params["segment_types"]),
        **write_norm("embeddings.LayerNorm", params["embedding_norm"]),
    }
    period = len(settings.attention.pattern)
    for i in range(settings.layers):
        block = params[f"period_{i // period}"][f"block_{i % period}"]
        tensors |= {f"encoder.layer.{i}.{name}": value for name, value in _write_layer(block).items()}
    if settings.head.pooler:
        tensors |= write_linear(_POOLER, params["pooler"]["dense"])
    if not settings.head.transform and head is None:
        return tensors
    tensors = {BERT + name: value for name, value in tensors.items()}
    if settings.head.transform:
        transform = params["head_transform"]
        tensors |= write_linear(f"{_TRANSFORM}.dense", transform["dense"])
        tensors |= write_norm(f"{_TRANSFORM}.LayerNorm", transform["norm"])
        tensors[_BIAS] = array(params["head_bias"])
        if not settings.tied_head:
            tensors |= {_TABLE: array(params["head"]), _OTHER_BIAS: array(params["head_bias"])}
    return tensors if head is None else tensors | write_linear(_HEADS[head.kind], head.params)


def _older_norms(take: TakenTensors, prefix: str) -> Take:
    """Takes the tensors of the encoder. Files that began as TensorFlow's call a norm's parts gamma and beta."""
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def taken(name: str, shape: tuple[int, ...]) -> np.ndarray:
        for new, old in older.items():
            if name.endswith(new) and not take.has(prefix + name) and take.has(prefix + name.replace(new, old)):
                name = name.replace(new, old)
        return take(prefix + name, shape)

    return taken


def _below(take: Take, start: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return take(start + name, shape)


def _read_layer(take: Take, settings: ModelSettings) -> Params:
    D, H, K, F = settings.width, settings.attention.heads, settings.head_dim, settings.feed_forward_width
    query, key, value = (
        read_linear(take, f"attention.self.{name}", (D,), (H, K), bias=True) for name in ("query", "key", "value")
    )
    out = read_linear(take, "attention.output.dense", (H, K), (D,), bias=True)
    return {
        "attention": {"query": query, "key_value": paired(key, value), "out": out},
        "attention_norm": read_norm(take, "attention.output.LayerNorm", settings),
        "feed_forward": {
            "up": read_linear(take, "intermediate.dense", (D,), (F,), bias=True),
            "down": read_linear(take, "output.dense", (F,), (D,), bias=True),
        },
        "feed_forward_norm": read_norm(take, "output.LayerNorm", settings),
    }


def _write_layer(block: Params) -> Tensors:
    attention, feed_forward = block["attention"], block["feed_forward"]
    return {
        **write_linear("attention.self.query", attention["query"]),
        **write_linear("attention.self.key", part_of(attention["key_value"], 0)),
        **write_linear("attention.self.value", part_of(attention["key_value"], 1)),
        **write_linear("attention.output.dense", attention["out"], 2),
        **write_norm("attention.output.LayerNorm", block["attention_norm"]),
        **write_linear("intermediate.dense", feed_forward["up"]),
        **write_linear("output.dense", feed_forward["down"]),
        **write_norm("output.LayerNorm", block["feed_forward_norm"]),
    }


def _read_vocabulary(take: TakenTensors, settings: ModelSettings, tokens: str) -> Params:
    """The masked language model's head, whose table may be stored beside the embeddings, and its bias twice."""
    vocab, width = settings.vocab_size or 0, settings.width
    norms = _older_norms(take, "")
    transform = {
        "dense": read_linear(norms, f"{_TRANSFORM}.dense", (width,), (width,), bias=True),
        "norm": read_norm(norms, f"{_TRANSFORM}.LayerNorm", settings),
    }
    params: Params = {"head_transform": transform, "head_bias": take(_BIAS, (vocab,))}
    if not settings.tied_head:
        if take.has(_OTHER_BIAS):  # transformers adds this one, and unties it from the other
            params["head_bias"] = take(_OTHER_BIAS, (vocab,))
        return params | {"head": take(_TABLE, (vocab, width))}
    take.same(_OTHER_BIAS, _BIAS, (vocab,), "its other name; keep one of them")
    fix = "though the head is tied; set tie_word_embeddings to false in config.json if the head is one of its own"
    take.same(_TABLE, tokens, (vocab, width), fix)
    return params


def _read_head(take: TakenTensors, settings: ModelSettings, kind: str, labels: tuple[str, ...]) -> TaskHead | None:
    """The head of a task. A BertForPreTraining may lack its next sentence head, as one of a lone MLM."""
    name = _HEADS[kind]
    outputs = {"next_sentence": 2, "choice": 1, "span": 2}.get(kind, take.first_axis(f"{name}.weight"))
    if kind == "next_sentence" and not take.has(f"{name}.weight"):
        return None
    params = read_linear(take, name, (settings.width,), (outputs,), bias=True)
    named = kind in ("sequence", "tokens") and len(labels) == outputs > 1
    return TaskHead(kind, params, labels if named else ())
