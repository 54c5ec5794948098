"""A tiny model over a dozen pieces, some of which are halves of characters, and what a full forward pass says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ModelSettings
from lmjax.tokenizers.base import Contents, StoredTokenizer

PIECES = [b"a", b"b", b" the", b"st", b"op", b"\xe4\xbd", b"\xa0", b"\xc3", b"\xa9", b"\n", b"\xf0\x9f\x98", b"\x80"]


class PieceTokenizer(StoredTokenizer):
    """One id per piece, and the last for the end of a text."""

    kind = "pieces"
    lossless = False

    def __init__(self, eos_id=len(PIECES)):
        self.vocab_size = len(PIECES) + 1
        self.eos_id = eos_id

    def _encode_batch(self, texts):
        return [np.array([PIECES.index(bytes([byte])) for byte in text.encode()], np.int32) for text in texts]

    def _pieces(self, texts):
        raise NotImplementedError("no test here asks for places")

    def decode(self, ids):
        return b"".join([PIECES[i] for i in self.text_ids(ids)]).decode("utf-8", errors="replace")

    def contents(self):
        return Contents(self.kind, {}, {})


class Subject:
    """The model, its parameters, and logits by a full forward pass without any cache."""

    def __init__(self):
        # 16 rows for 13 entries: the last three must never be drawn. 128 positions: two of the sizes that are compiled.
        heads = AttentionSettings(heads=2, pattern=("dense", "banded"), band=24)
        settings = ModelSettings(layers=2, width=16, context=128, vocab_size=16, attention=heads, tied_head=False)
        self.model = LanguageModel(settings)
        self.tokenizer = PieceTokenizer()
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            around = 1.0 if path[-1].key == "scale" else 0.0
            return jnp.asarray(around + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(draw, shapes)
        # The last norm gives every hidden state the same first entry; through it the head makes the end of text rare.
        norm = params["final_norm"]["norm"]
        params["final_norm"]["norm"] = {"scale": norm["scale"].at[0].set(0), "bias": norm["bias"].at[0].set(1)}
        params["head"] = params["head"].at[:, 0].set(0).at[self.tokenizer.eos_id, 0].set(-8)
        self.params = params
        self._forward = jax.jit(self.model.logits)

    def logits(self, ids):
        """Of the token after each of `ids`, float64, over the tokenizer's entries only."""
        row = np.zeros((1, 128), np.int32)
        row[0, : len(ids)] = ids
        batch = {
            "tokens": row,
            "positions": np.arange(128, dtype=np.int32)[None],
            "segments": (np.arange(128) < len(ids)).astype(np.int32)[None],
        }
        return np.asarray(self._forward(self.params, batch), np.float64)[0, : len(ids), : self.tokenizer.vocab_size]

    def prompt_ids(self, prompt):
        return self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]

    def step_logits(self, prompt, tokens):
        """Of each of `tokens` in turn, given all before it."""
        ids = [*self.prompt_ids(prompt), *tokens]
        return self.logits(ids)[-len(tokens) - 1 : -1]


@pytest.fixture(scope="session")
def subject():
    return Subject()


@pytest.fixture(scope="session")
def piece_tokenizer():
    """PieceTokenizer, to make one whose end of text is another piece."""
    return PieceTokenizer
