"""Masked language modelling and the next sentence: each a mean of its own, over uneven rows, parts and devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.model.encoder import Encoder
from lmjax.model.heads import TaskModel
from lmjax.objective.masked_language import masked_and_next_loss, masked_loss, weighed
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

B, T, P, V, REAL, D = 8, 12, 4, 48, 45, 16
SETTINGS = ModelSettings(
    layers=1,
    width=D,
    context=T,
    vocab_size=V,
    attention=AttentionSettings(heads=4, causal=False),
    norm=NormSettings(position="post", final=False, embeddings=True),
    positions=PositionSettings(segment_types=2),
    head=HeadSettings(transform=True, bias=True, pooler=True),
)
COMPUTE = ComputeSettings(dtype="float32", loss_chunk=8)
TRUNK = Encoder(SETTINGS, COMPUTE)
MODEL = TaskModel(TRUNK, 2)


def uneven_batch(seed=0):
    """Rows of 0 to 4 predicted tokens, and two rows that fill the batch up."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, T + 1, B)
    real = np.arange(T) < lengths[:, None]
    counts = np.array([4, 1, 0, 4, 2, 1, 0, 0])
    predicted = np.arange(P) < counts[:, None]
    columns = np.where(predicted, np.argsort(rng.random((B, 5)), axis=1)[:, :P] + 1, 0)
    real[6:] = False
    return {
        "tokens": (rng.integers(0, REAL, (B, T)) * real).astype(np.int32),
        "token_types": (real & (np.arange(T) >= 4)).astype(np.int32),
        "positions": np.tile(np.arange(T), (B, 1)).astype(np.int32),
        "segments": real.astype(np.int32),
        "predicted": columns.astype(np.int32),
        "predicted_targets": (rng.integers(0, REAL, (B, P)) * predicted).astype(np.int32),
        "predicted_weights": predicted.astype(np.float32),
        "labels": rng.integers(0, 2, B).astype(np.int32),
        "label_weights": np.array([1.0] * 6 + [0.0] * 2, np.float32),
    }


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _states(trunk, batch):
    hidden = TRUNK.hidden(trunk, batch).hidden
    return TRUNK.project(trunk, hidden), TRUNK.pooled(trunk, hidden)


def both_losses(batch):
    """The two means and accuracies in plain NumPy, from all logits and the pooled states."""
    trunk = params()["trunk"]
    logits, pooled = jax.jit(_states)(trunk, batch)
    logits = log_softmax(np.asarray(logits)[..., :REAL])
    rows, places = np.nonzero(batch["predicted_weights"])
    columns, targets = batch["predicted"][rows, places], batch["predicted_targets"][rows, places]
    pooled = np.asarray(pooled, np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params()["head"])
    pair = log_softmax(pooled @ head["kernel"] + head["bias"])[:6]
    return {
        "masked_loss": -logits[rows, columns, targets].mean(),
        "masked_accuracy": (logits[rows, columns].argmax(-1) == targets).mean(),
        "next_sentence_loss": -pair[np.arange(6), batch["labels"][:6]].mean(),
        "next_sentence_accuracy": (pair.argmax(-1) == batch["labels"][:6]).mean(),
    }


def test_both_losses_are_means_of_their_own_and_are_added():
    batch = uneven_batch()
    both = jax.jit(functools.partial(masked_and_next_loss(MODEL, valid_vocab=REAL), rng=None))
    loss, metrics = both(params(), weighed(batch))
    expected = both_losses(batch)
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name].mean(), value, rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), expected["masked_loss"] + expected["next_sentence_loss"], rtol=1e-5)
    assert float(loss.weight) == 12
    only = jax.jit(functools.partial(masked_loss(TRUNK, valid_vocab=REAL), rng=None))
    alone, own = only(params()["trunk"], batch)
    np.testing.assert_allclose(alone.mean(), expected["masked_loss"], rtol=1e-5)
    assert set(own) == {"masked_loss", "masked_accuracy"}


def test_a_batch_without_predicted_tokens_or_without_pairs_has_no_nan():
    batch = uneven_batch()
    both = jax.jit(functools.partial(masked_and_next_loss(MODEL, valid_vocab=REAL), rng=None))
    for name in ("predicted_weights", "label_weights"):
        empty = weighed(batch | {name: np.zeros_like(batch[name])})
        loss, _ = both(params(), empty)
        assert np.isfinite(float(loss.sum)) and np.isfinite(np.asarray(empty["label_weights"])).all()


def naive(params, batch):
    """The same loss from all logits, by JAX alone."""
    hidden = TRUNK.hidden(params["trunk"], batch).hidden
    logits = TRUNK.project(params["trunk"], hidden, REAL)
    nll = optax.softmax_cross_entropy_with_integer_labels(
        jnp.take_along_axis(logits, batch["predicted"][..., None], axis=1), batch["predicted_targets"]
    )
    weights, labelled = batch["predicted_weights"], batch["label_weights"]
    pair = TRUNK.pooled(params["trunk"], hidden) @ params["head"]["kernel"] + params["head"]["bias"][None]
    pair = optax.softmax_cross_entropy_with_integer_labels(pair, batch["labels"])
    return (nll * weights).sum() / weights.sum() + (pair * labelled).sum() / labelled.sum()


def test_the_gradient_is_that_of_a_loss_over_all_logits():
    batch = uneven_batch()

    def own(params):
        return masked_and_next_loss(MODEL, valid_vocab=REAL)(params, weighed(batch), None)[0].mean()

    found, expected = jax.jit(jax.grad(own))(params()), jax.jit(jax.grad(naive))(params(), batch)
    for (place, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=str(place))
    assert np.abs(np.asarray(expected["trunk"]["head_transform"]["dense"]["kernel"])).max() > 1e-3


def test_only_predicted_columns_reach_the_vocabulary():
    def loss(params, batch):
        return masked_and_next_loss(MODEL, valid_vocab=REAL)(params, batch, None)[0].sum

    text = str(jax.make_jaxpr(jax.grad(loss))(params(), uneven_batch()))
    tokens = {int(a) * int(b) for a, b in re.findall(rf"f32\[(\d+),(\d+),{V}\]", text)}
    assert tokens and max(tokens) <= B * P


OPTIMIZER = optax.sgd(0.1)


def stepped(parts):
    step = make_train_step(masked_and_next_loss(MODEL, valid_vocab=REAL), OPTIMIZER, microbatches=parts)
    return lambda state, batch: step(state, weighed(batch))


@functools.cache
def whole():
    return jax.device_get(jax.jit(stepped(1))(TrainState.create(params(), OPTIMIZER), uneven_batch()))


def assert_same_step(state, metrics):
    expected, wanted = whole()
    for name in ("loss", "masked_loss", "next_sentence_loss", "next_sentence_accuracy"):
        np.testing.assert_allclose(metrics[name].mean(), wanted[name].mean(), rtol=1e-5, err_msg=name)
    for a, b in zip(*map(jax.tree.leaves, (state.params, expected.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("parts", [4])
def test_parts_of_very_uneven_rows_are_the_whole_batch(parts):
    assert_same_step(*jax.jit(stepped(parts))(TrainState.create(params(), OPTIMIZER), uneven_batch()))


def test_two_means_without_weighing_would_be_another_step():
    """Without this, a step that weighs labels wrongly might pass."""
    step = make_train_step(masked_and_next_loss(MODEL, valid_vocab=REAL), OPTIMIZER)
    _, metrics = jax.jit(step)(TrainState.create(params(), OPTIMIZER), uneven_batch())
    assert abs(metrics["loss"].mean() - whole()[1]["loss"].mean()) > 1e-2


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_step_on_a_mesh_is_a_step_on_one_device(sizes):
    mesh = make_mesh(MeshSettings(**({"data": 1} | sizes)), jax.devices()[: int(np.prod(list(sizes.values())))])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(MODEL, OPTIMIZER, mesh))
    state = jax.device_put(TrainState.create(params(), OPTIMIZER), shardings)
    batch = uneven_batch()
    axes = dict.fromkeys(batch, ("batch",))
    placed = place_batch(lambda rows: {name: array[rows] for name, array in batch.items()}, B, mesh, axes)
    batch_shardings = {name: array.sharding for name, array in placed.items()}
    assert_same_step(*jit_step(stepped(2), state, mesh, batch=batch_shardings)(state, placed))
