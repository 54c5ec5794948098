"""Embeddings, stack and head by themselves: an encoder and a decoder that reads it are made of the same two modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings, PositionSettings

M, T = 7, 5
SETTINGS = ModelSettings(
    layers=2,
    encoder_layers=2,
    width=16,
    context=8,
    vocab_size=23,
    attention=AttentionSettings(heads=2),
    positions=PositionSettings(kind="relative", relative_buckets=8, relative_max_distance=10),
)
MEMORY_SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1, 1, 2, 2, 2]], jnp.int32)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_decoder_reads_the_encoded_document_of_its_own_segment(scan):
    model = EncoderDecoder(SETTINGS, ComputeSettings(scan_layers=scan))
    params = jax.jit(model.init)(jax.random.key(0))
    assert set(params) == {"tokens", "encoder", "decoder"}
    batch = {
        "inputs": jnp.arange(M)[None],  # no two places share a token
        "input_positions": jnp.arange(M)[None],
        "input_segments": MEMORY_SEGMENTS,
        "tokens": M + jnp.arange(T)[None],
        "positions": jnp.arange(T)[None],
        "segments": SEGMENTS,
    }

    def total(table, weight):
        hidden = model.hidden(params | {"tokens": table}, batch).hidden
        return (hidden * weight[:, :, None] * jnp.arange(1.0, 17.0)[None, None, :]).sum()

    for row, seen in ((1, [0, 1, 2, M, M + 1]), (3, [3, 4, M + 2, M + 3])):
        weight = np.zeros((1, T), np.float32)
        weight[0, row] = 1.0
        gradient = np.abs(jax.jit(jax.grad(total))(params["tokens"], weight)).max(-1)
        assert np.flatnonzero(gradient).tolist() == seen


@pytest.mark.parametrize(("tied", "kind"), [(True, "learned"), (False, "none")])
def test_a_models_parts_share_one_level_of_names(tied, kind):
    settings = ModelSettings(vocab_size=23, tied_head=tied, positions=PositionSettings(kind=kind))
    for scan, layers in ((True, {"periods"}), (False, {f"period_{i}" for i in range(4)})):
        model = LanguageModel(settings, ComputeSettings(scan_layers=scan))
        names = set(jax.eval_shape(model.init, jax.random.key(0)))
        own = ({"positions"} if kind == "learned" else set()) | (set() if tied else {"head"})
        assert names == {"tokens", "final_norm"} | own | layers
