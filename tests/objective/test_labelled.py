"""Losses of fine-tuning tasks on tiny models: what is added and shared, and that cutting a batch changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.frames import Frame
from lmjax.data.ragged_rows import RaggedRows
from lmjax.model.families import model_of
from lmjax.model.heads import TaskModel
from lmjax.objective.labelled import (
    choice_loss,
    embedding_loss,
    embeddings,
    option_scores,
    text_loss,
    text_outputs,
)
from lmjax.settings import AttentionSettings, ModelSettings

ENTRIES = 20
ENCODER = ModelSettings(
    layers=1, width=16, context=12, vocab_size=ENTRIES, attention=AttentionSettings(heads=2, causal=False)
)
DECODER = ModelSettings(layers=1, width=16, context=12, vocab_size=ENTRIES + 3, attention=AttentionSettings(heads=2))
FRAME = Frame(20, 21, 22)
RNG = np.random.default_rng(0)


def texts(count, frame):
    rows = []
    for size in RNG.integers(1, 8, count):
        tokens = np.array([frame[0], *RNG.integers(3, ENTRIES, size), frame[1]], np.int32)
        rows.append((tokens, np.zeros_like(tokens)))
    return rows


def batch_of(count, labels, frame=(20, 22), options=None, weights=None):
    rows = texts(count, frame)
    fields = {"labels": np.asarray(labels), "label_weights": np.ones(len(labels), np.float32)}
    if weights is not None:
        fields["label_weights"] = np.asarray(weights, np.float32)
    made = RaggedRows(rows, 12, fields, options=options, entries=ENTRIES)
    return {name: jnp.asarray(array) for name, array in made.batch(np.arange(len(labels))).items()}


@pytest.fixture(scope="module")
def decoder():
    model = TaskModel(model_of(DECODER), 3)
    return model, model.init(jax.random.key(0))


def mean(loss_fn, params, batch):
    loss, metrics = jax.jit(loss_fn, static_argnums=2)(params, batch, None)
    return float(loss.mean()), {name: float(pair.mean()) for name, pair in metrics.items()}


def test_l3_is_l2_and_lambda_times_the_mean_over_texts_of_the_mean_over_tokens(decoder):
    """Radford et al. 2018, equation 5, with an independent softmax over the tokenizer's entries alone."""
    model, params = decoder
    batch = batch_of(4, np.array([0, 2, 1, 1], np.int32))
    l2, _ = mean(text_loss(model), params, batch)
    l3, metrics = mean(text_loss(model, language=0.5, entries=ENTRIES), params, batch)
    hidden = np.asarray(model.trunk.hidden(params["trunk"], batch).hidden, np.float64)
    logits = hidden @ np.asarray(params["trunk"]["tokens"], np.float64)[:ENTRIES].T
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    )
    weights = np.asarray(batch["weights"])
    l1 = ((nats * weights).sum(1) / weights.sum(1)).mean()
    assert l3 == pytest.approx(l2 + 0.5 * l1, rel=1e-5)
    assert metrics["language_loss"] == pytest.approx(l1, rel=1e-5)
    assert l1 != pytest.approx((nats * weights).sum() / weights.sum(), rel=1e-4), "the texts differ in length"


def test_microbatches_of_unequal_texts_and_classes_add_up(decoder):
    model, params = decoder
    batch = batch_of(6, np.array([0, 2, 1, 1, 0, 2], np.int32), weights=[1, 1, 0, 1, 1, 0])
    loss_fn = jax.jit(text_loss(model, class_weights=(1.0, 7.0, 0.1), language=0.5, entries=ENTRIES), static_argnums=2)
    whole, _ = loss_fn(params, batch, None)
    parts = [loss_fn(params, {name: x[at] for name, x in batch.items()}, None)[0] for at in (slice(3), slice(3, 6))]
    assert float((parts[0] + parts[1]).mean()) == pytest.approx(float(whole.mean()), rel=1e-6)
    assert float(parts[0].mean() + parts[1].mean()) / 2 != pytest.approx(float(whole.mean()), rel=1e-3)


def test_both_orders_of_two_texts_are_added_before_the_head(decoder):
    model, params = decoder
    params = params | {"head": params["head"] | {"bias": jnp.array([3.0, -1.0, 0.5])}}
    batch = batch_of(4, np.array([0, 1], np.int32), options=np.array([[0, 1], [2, 3]]))
    got, _ = jax.jit(lambda params, batch: text_outputs(model, params, batch))(params, batch)
    rows = {name: batch[name].reshape(4, 12) for name in ("tokens", "positions", "segments")}
    hidden = np.asarray(model.trunk.hidden(params["trunk"], rows).hidden)
    last = hidden[np.arange(4), np.asarray(rows["segments"]).sum(1) - 1]
    by_hand = (last[[0, 2]] + last[[1, 3]]) @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(got, by_hand, atol=1e-5)


def test_options_are_scored_as_rows_of_their_own_and_missing_ones_are_never_chosen():
    model = TaskModel(model_of(ENCODER), 1)
    params = model.init(jax.random.key(0))
    batch = batch_of(5, np.array([1, 2], np.int32), frame=(1, 2), options=np.array([[0, 1, -1], [2, 3, 4]]))
    scores, _ = jax.jit(lambda params, batch: option_scores(model, params, batch))(params, batch)
    for example, option in ((0, 0), (0, 1), (1, 2)):
        row = {name: batch[name][example, option][None] for name in ("tokens", "positions", "segments", "token_types")}
        alone, _ = model.outputs_of(params, row)
        assert float(alone[0, 0]) == pytest.approx(float(scores[example, option]), abs=1e-5)
    assert scores[0, 2] < -1e20
    loss, metrics = mean(choice_loss(model), params, batch)
    x = np.asarray(scores, np.float64)
    by_hand = np.mean([np.log(np.exp(x[0, :2]).sum()) - x[0, 1], np.log(np.exp(x[1]).sum()) - x[1, 2]])
    assert loss == pytest.approx(by_hand, rel=1e-5) and metrics["cross_entropy"] == pytest.approx(loss)


def test_embeddings_are_means_of_real_tokens_of_length_one_and_their_cosines_learn_the_scores():
    model = model_of(ENCODER)
    params = model.init(jax.random.key(0))
    batch = batch_of(4, np.array([5.0, 1.0], np.float32), frame=(1, 2), options=np.array([[0, 1], [2, 3]]))
    vectors, _ = jax.jit(lambda params, batch: embeddings(model, params, batch))(params, batch)
    assert vectors.shape == (2, 2, 16)
    row = {name: batch[name][1, 0][None] for name in ("tokens", "positions", "segments", "token_types")}
    real = np.asarray(row["segments"])[0] == 1
    by_hand = np.asarray(model.hidden(params, row).hidden)[0][real].mean(0)
    np.testing.assert_allclose(vectors[1, 0], by_hand / np.linalg.norm(by_hand), atol=1e-5)
    loss, _ = mean(embedding_loss(model, 5.0), params, batch)
    cosine = (np.asarray(vectors[:, 0]) * np.asarray(vectors[:, 1])).sum(1)
    assert loss == pytest.approx(((cosine - np.array([1.0, 0.2])) ** 2).mean(), rel=1e-5)
