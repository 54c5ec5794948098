"""The same GPT-2 in transformers and in lmjax, for the benchmarks: shapes, equal weights, and a way to load them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 50_257


@dataclass(frozen=True)
class Shape:
    """A GPT-2 and a batch of `rows` rows of `length` tokens."""

    layers: int
    width: int
    heads: int
    context: int
    rows: int
    length: int
    vocabulary: int = VOCABULARY


SHAPES = {
    "small": Shape(layers=6, width=384, heads=6, context=256, rows=12, length=256),
    "gpt2_124m": Shape(layers=12, width=768, heads=12, context=1024, rows=2, length=512),
}


@dataclass(frozen=True)
class Numbers:
    """A tokenizer whose text is the tokens' numbers, and whose rows never end."""

    vocab_size: int = VOCABULARY
    eos_id: int = -1

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def forward_flops(shape: Shape, length: int) -> float:
    """FLOPs per token of a forward pass over rows of `length` tokens, as `lmjax count` counts them."""
    from lmjax.model import flops
    from lmjax.settings import AttentionSettings, ModelSettings

    attention, vocabulary = AttentionSettings(heads=shape.heads), shape.vocabulary
    settings = ModelSettings(shape.layers, shape.width, shape.context, vocab_size=vocabulary, attention=attention)
    of = flops.forward_flops(settings, length)
    return of.body + of.head + of.scores


def fields_of(tokens: Any) -> dict[str, Any]:
    """lmjax's fields of rows of tokens [B, T]; the last one of a row has no target, as transformers shifts labels."""
    import numpy as np

    from lmjax.data.batch import TARGETS, TOKENS, WEIGHTS, one_segment

    weights = np.ones(tokens.shape, np.float32)
    weights[:, -1] = 0
    own = {TOKENS: tokens.astype(np.int32), TARGETS: np.roll(tokens, -1, axis=1).astype(np.int32), WEIGHTS: weights}
    return own | one_segment(np.ones(tokens.shape, bool))


def torch_model(shape: Shape, folder: Path, threads: int) -> Any:
    """transformers' model without dropout, freshly initialised by a fixed seed; `folder` gets its weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = {
        "n_layer": shape.layers,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_positions": shape.context,
        "vocab_size": shape.vocabulary,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    model.save_pretrained(folder)
    return model
