"""The loss of an encoder-decoder over packed examples: they stay apart, and parts and devices change nothing."""

import functools
import math

import jax
import numpy as np
import optax
import pytest

from lmjax.data.seq2seq_rows import laid_out
from lmjax.data.token_strings import TokenStrings
from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.objective.next_token import language_loss
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_state, jit_step, place_batch
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    HeadSettings,
    MeshSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
)
from lmjax.training.step import make_train_step

S, T, V, REAL, ROWS = 16, 8, 48, 45, 8
MODEL = EncoderDecoder(
    ModelSettings(
        layers=1,
        encoder_layers=1,
        width=16,
        context=S,
        vocab_size=V,
        attention=AttentionSettings(heads=4, scaled=False, bias=False),
        norm=NormSettings(kind="rmsnorm"),
        positions=PositionSettings(kind="relative"),
        head=HeadSettings(scaled=True),
    ),
    ComputeSettings(dtype="float32", loss_chunk=16),
)


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)


def packed(counts=(3, 1, 2, 0, 1, 3, 0, 2), seed=0):
    """Rows of so many examples of 1 to 5 inputs and 1 to 2 targets."""
    rng = np.random.default_rng(seed)
    total = sum(counts)
    inputs = [rng.integers(1, REAL, rng.integers(1, 6)) for _ in range(total)]
    targets = [rng.integers(1, REAL, rng.integers(1, 3)) for _ in range(total)]
    return laid_out(TokenStrings.of(inputs), TokenStrings.of(targets), np.array(counts), (S, T)), inputs, targets


def test_examples_in_a_row_give_the_logits_that_each_gives_alone():
    batch, inputs, targets = packed()
    logits_of = jax.jit(MODEL.logits)
    together = np.asarray(logits_of(params(), batch))
    alone = laid_out(TokenStrings.of(inputs), TokenStrings.of(targets), np.ones(len(inputs), np.int64), (S, T))
    apart = np.asarray(logits_of(params(), alone))
    example = 0
    for row in range(ROWS):
        for segment in range(1, batch["segments"][row].max() + 1):
            own = together[row][batch["segments"][row] == segment]
            np.testing.assert_allclose(own, apart[example][: len(own)], atol=2e-5)
            example += 1
    assert example == len(inputs) == 12
    for row in range(example - 1):  # inputs matter, so that agreement says something
        assert np.abs(apart[row][0] - apart[row + 1][0]).max() > 1e-2


def test_the_loss_is_the_mean_over_all_targets():
    batch, _, targets = packed()
    loss, metrics = jax.jit(functools.partial(language_loss(MODEL, valid_vocab=REAL), rng=None))(params(), batch)
    logits = np.asarray(jax.jit(MODEL.logits)(params(), batch), np.float64)[..., :REAL]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = batch["segments"] > 0
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0][real]
    assert len(nll) == sum(map(len, targets)) == float(loss.weight)
    np.testing.assert_allclose(loss.mean(), nll.mean(), rtol=1e-5)
    right = (logits.argmax(-1) == batch["targets"])[real].mean()
    np.testing.assert_allclose(metrics["accuracy"].mean(), right, rtol=1e-6)


OPTIMIZER = optax.sgd(0.1)


def step_of(parts):
    return make_train_step(language_loss(MODEL, z_loss=1e-3, valid_vocab=REAL), OPTIMIZER, microbatches=parts)


@functools.cache
def whole():
    return jax.device_get(jax.jit(step_of(1))(TrainState.create(params(), OPTIMIZER), packed()[0]))


def assert_same_step(state, metrics):
    expected, wanted = whole()
    np.testing.assert_allclose(metrics["loss"].mean(), wanted["loss"].mean(), rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (state.params, expected.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state.params, params())), strict=True)]
    assert min(moved) > 1e-5, "every parameter, also those of the encoder"


def test_parts_of_very_uneven_rows_are_the_whole_batch():
    assert_same_step(*jax.jit(step_of(4))(TrainState.create(params(), OPTIMIZER), packed()[0]))


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_step_on_a_mesh_is_a_step_on_one_device(sizes):
    mesh = make_mesh(MeshSettings(**({"data": 1} | sizes)), jax.devices()[: math.prod(sizes.values())])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(MODEL, OPTIMIZER, mesh))
    state = jax.device_put(TrainState.create(params(), OPTIMIZER), shardings)
    batch, _, _ = packed()
    axes = dict.fromkeys(batch, ("batch",))
    placed = place_batch(lambda rows: {name: array[rows] for name, array in batch.items()}, ROWS, mesh, axes)
    fields = {name: array.sharding for name, array in placed.items()}
    assert_same_step(*jit_step(step_of(2), state, mesh, batch=fields)(state, placed))
