"""The cache: decoding one token at a time gives what the full pass gives, and copies no cache on the way."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings

V, LENGTH, SLOTS = 37, 9, 301


def decoder(scan_layers=False, **attention):
    attention = AttentionSettings(heads=4, **attention)
    settings = ModelSettings(layers=4, width=32, context=SLOTS, vocab_size=V, attention=attention)
    return LanguageModel(settings, ComputeSettings(scan_layers=scan_layers))


def fields(tokens):
    rows, length = tokens.shape
    return {
        "tokens": tokens,
        "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
        "segments": jnp.ones((rows, length), jnp.int32),
    }


@pytest.mark.parametrize(("rows", "platform"), [(1, "cpu"), (3, "cpu"), (3, "tpu")])
@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize(
    "attention", [{}, {"kv_heads": 2, "pattern": ("dense", "banded"), "band": 3}], ids=["plain", "grouped, banded"]
)
def test_a_prompt_and_then_single_tokens_give_the_logits_of_the_full_pass(rows, platform, scan_layers, attention):
    whole = decoder(scan_layers, **attention)
    compute = dataclasses.replace(whole.compute, dtype="float32")
    model = dataclasses.replace(whole, platform=platform, compute=compute)
    params = jax.tree.map(lambda p: p * 4, model.init(jax.random.key(0)))  # so that attention is far from uniform
    batch = fields(jnp.asarray(np.random.default_rng(0).integers(0, V, (rows, LENGTH)), jnp.int32))
    extend, found, cache = jax.jit(model.extend), [], model.empty_cache(rows, LENGTH + 2)
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, LENGTH))]:
        part = (batch[name][:, start:stop] for name in ("tokens", "positions", "segments"))
        hidden, cache = extend(params, cache, *part, start)
        found.append(model.project(params, hidden))
    expected = whole.logits(params, batch)
    assert np.abs(np.asarray(expected)).max() > 0.5
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_decoding_loop_copies_no_cache(rows):
    """XLA's CPU backend copies a cache with an axis of size 1 three times per token, and a layer's slice of a stack."""
    model = decoder()
    params = model.init(jax.random.key(0))
    cache = model.empty_cache(rows, SLOTS)

    def loop(params, cache, count):
        def one(carry):
            i, token, cache = carry
            position = jnp.broadcast_to(i, (rows, 1))
            hidden, cache = model.extend(params, cache, token, position, jnp.ones_like(token), i)
            return i + 1, model.project(params, hidden).argmax(-1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda carry: carry[0] < count, one, (0, jnp.zeros((rows, 1), jnp.int32), cache))

    program = jax.jit(loop, donate_argnums=1).lower(params, cache, 9).compile().as_text()
    shape = cache.layers[0].keys.shape
    assert shape[-2:] == (SLOTS, 8)
    made = re.findall(rf"= f32\[(?:[\d,]+,)?{SLOTS},8\]\S* (copy|transpose|slice|dynamic-slice)\(", program)
    assert "dynamic-update-slice" in program
    assert not made


@pytest.mark.parametrize("rows", [1, 2, 16, 17])
def test_logits_of_a_few_rows_are_the_product_with_the_head(rows):
    model = decoder()
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(rows, 1, 32)), rng.normal(size=(V, 32))
    found = model.project({"tokens": jnp.asarray(head, jnp.float32)}, jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, hidden @ head.T, atol=1e-4)
    same = dataclasses.replace(model, platform="tpu").project(
        {"tokens": jnp.asarray(head, jnp.float32)}, jnp.asarray(hidden, jnp.bfloat16)
    )
    assert same.shape == found.shape
    assert same.dtype == jnp.float32
