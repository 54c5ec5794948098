"""Checkpoints of models with fresh parameters, which fine-tuning tests start from: nothing is trained for them."""

from pathlib import Path

import jax
import jax.numpy as jnp

from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.model.families import model_of
from lmjax.optim.train_state import TrainState
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    ModelSettings,
    PositionSettings,
    Pretrain,
    TokenizerSettings,
)
from lmjax.settings.recipe_files import to_json
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def checkpoint(folder: Path, tokenizer: Tokenizer, **model: object) -> Path:
    """The folder with a checkpoint of a model of one layer and width 16; `model` are other fields of its settings."""
    own = {"layers": 1, "width": 16, "context": 16, "vocab_size": tokenizer.vocab_size}
    settings = ModelSettings(**{"attention": AttentionSettings(heads=2), **own, **model})
    kind: str = tokenizer.kind
    recipe = Pretrain(
        name="fresh",
        tokenizer=TokenizerSettings(kind=kind, vocab_size=tokenizer.vocab_size),
        data=DataSettings(sequence_length=16),
        model=settings,
    )
    tokenizer.save(folder / "tokenizer")
    place = folder / "checkpoints" / "pretrain"
    told = {"recipe_json": to_json(recipe), "tokenizer_folder": folder / "tokenizer", "report": print}
    with Checkpointer(place, CheckpointSettings(), **told) as writer:
        writer.save(TrainState(jnp.zeros((), jnp.int32), model_of(settings).init(jax.random.key(0)), {}), 0, {})
    return folder


def encoder(folder: Path, **model: object) -> Path:
    """A checkpoint of an encoder with two types of tokens, whose words are the letters."""
    own = {"attention": AttentionSettings(heads=2, causal=False), "positions": PositionSettings(segment_types=2)}
    return checkpoint(folder, wordpiece(WORDS, lowercase=True), **{**own, **model})


def decoder(folder: Path, **model: object) -> Path:
    """A checkpoint of a decoder with the same words."""
    return checkpoint(folder, wordpiece(WORDS, lowercase=True), **model)
