"""A model's auxiliary losses: added to a loss's mean, and the same however the batch is cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.outputs import Outputs, Weighted
from lmjax.objective.next_token import language_loss
from lmjax.objective.preferences import preference_loss, reward_loss
from lmjax.objective.weighted import with_auxiliary
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import on_mesh, place_batch
from lmjax.settings import AttentionSettings, MeshSettings, ModelSettings
from lmjax.training.step import make_eval_step, make_train_step

B, T, V, COEFFICIENT = 8, 6, 19, 0.7
SETTINGS = ModelSettings(layers=1, width=16, context=T, vocab_size=V, attention=AttentionSettings(heads=2))


class Penalised(LanguageModel):
    """The mean square of the hidden states is to be small."""

    def hidden(self, params, batch, rng=None):
        hidden_BTD, aux = super().hidden(params, batch, rng)
        real_BT = batch["segments"] != 0
        squares_BT = jnp.where(real_BT, (hidden_BTD**2).mean(-1), 0.0)
        return Outputs(hidden_BTD, aux | {"square": Weighted(COEFFICIENT * squares_BT.sum(1), real_BT.sum(1))})


PLAIN, MODEL = LanguageModel(SETTINGS), Penalised(SETTINGS)


def ragged(lead=(B,)):
    """Rows of one to T tokens, one of none, with weights that differ by orders of magnitude; some tokens have none."""
    rng = np.random.default_rng(0)
    shape, rows = (*lead, T), int(np.prod(lead))
    tokens = rng.integers(0, V, shape).astype(np.int32)
    lengths = np.array([3, 6, 0, 1, 5, 6, 2, 4] * 2)[:rows].reshape(*lead, 1)
    real = np.arange(T) < lengths
    weights = real * (rng.random(shape) < 0.7) * 10.0 ** rng.uniform(-2, 1, (*lead, 1))
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, -1),
        "weights": weights.astype(np.float32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), shape).copy(),
        "segments": real.astype(np.int32),
    }


@functools.cache
def params():
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def by_hand(params, batch):
    """The mean cross-entropy, and the mean over rows, by their weight, of each row's mean square."""
    hidden, _ = PLAIN.hidden(params, batch)
    log_p = jax.nn.log_softmax(PLAIN.logits(params, batch))
    chosen = jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    squares = jnp.float32(0.0)
    for row, length in enumerate((batch["segments"] != 0).sum(1)):
        if length:
            squares += batch["weights"][row].sum() * (hidden[row, :length] ** 2).mean()
    total = batch["weights"].sum()
    return -(chosen * batch["weights"]).sum() / total, COEFFICIENT * squares / total


@functools.cache
def wanted():
    def total(params):
        entropy, square = by_hand(params, ragged())
        return entropy + square, (entropy, square)

    (_, parts), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params())
    return [float(part) for part in parts], gradient


def descended(step, params, batch):
    """The gradient that a step of plain gradient descent took, and its metrics."""
    optimizer = optax.sgd(1.0)
    state, metrics = step(TrainState.create(params, optimizer), batch)
    return jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), params, state.params), metrics


def assert_is_wanted(gradient, metrics):
    (entropy, square), expected = wanted()
    assert float(metrics["square"].mean()) == pytest.approx(square, rel=1e-5)
    assert float(metrics["cross_entropy"].mean()) == pytest.approx(entropy, rel=1e-5)
    assert float(metrics["loss"].mean()) == pytest.approx(entropy + square, rel=1e-5)
    assert square > 0.05 * entropy
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), gradient, expected)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_steps_gradient_is_that_of_the_loss_and_the_auxiliary_loss(microbatches):
    step = make_train_step(language_loss(MODEL), optax.sgd(1.0), microbatches=microbatches)
    assert_is_wanted(*descended(jax.jit(step), params(), ragged()))


def test_a_mesh_changes_no_auxiliary_loss():
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, sequence=2))
    batch = ragged()
    placed = place_batch(lambda rows: {name: array[rows] for name, array in batch.items()}, B, mesh)
    step = make_train_step(language_loss(MODEL), optax.sgd(1.0), microbatches=2)
    assert_is_wanted(*descended(jax.jit(on_mesh(step, mesh)), params(), placed))


def test_a_mapped_step_adds_auxiliary_losses_up_over_devices():
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    step = make_train_step(language_loss(MODEL), optax.sgd(1.0), axis_name="rows")
    specs = (PartitionSpec(), PartitionSpec("rows"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_is_wanted(*descended(jax.jit(mapped), params(), ragged()))


def test_where_real_tokens_weigh_one_it_is_the_mean_over_all_real_tokens():
    batch = ragged()
    batch["weights"] = (batch["segments"] != 0).astype(np.float32)
    metrics = jax.jit(make_eval_step(language_loss(MODEL)))(params(), batch)
    hidden = np.asarray(jax.jit(PLAIN.hidden)(params(), batch).hidden)
    mean = (hidden[batch["segments"] != 0] ** 2).mean()
    assert float(metrics["square"].mean()) == pytest.approx(COEFFICIENT * mean, rel=1e-5)


def test_a_batch_without_weight_has_no_auxiliary_loss():
    batch = ragged()
    batch["weights"][:] = 0.0
    metrics = jax.jit(make_eval_step(language_loss(MODEL)))(params(), batch)
    assert [float(metrics[name].mean()) for name in ("loss", "square")] == [0.0, 0.0]


def test_an_auxiliary_loss_may_not_replace_a_metric():
    one = Weighted(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="'accuracy'"):
        with_auxiliary(Weighted(jnp.float32(1), jnp.float32(1)), {"accuracy": one}, {"accuracy": one}, jnp.ones(2))


ANSWERS = ragged((4, 4)) | {
    "ranks": np.array([[0, 1, 2, 3], [0, 0, 0, 0], [1, 0, 1, 0], [0, 2, 1, 3]], np.int32)  # the second: all tied
}


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_answers_share_the_weight_of_their_prompt_in_an_auxiliary_loss(kind):
    scalar = jax.jit(ScalarModel(PLAIN).init)(jax.random.key(0))["scalar"]
    tree = {"trunk": params(), "scalar": scalar} if kind == "reward" else params()

    def loss(model):
        of_kind = reward_loss(ScalarModel(model)) if kind == "reward" else preference_loss(model, params(), beta=0.1)
        return jax.jit(functools.partial(of_kind, rng=None))(tree, ANSWERS)

    (plain, _), (penalised, metrics) = loss(PLAIN), loss(MODEL)
    rows = {name: array.reshape(-1, T) for name, array in ANSWERS.items() if name != "ranks"}
    hidden = np.asarray(jax.jit(PLAIN.hidden)(params(), rows).hidden).reshape(4, 4, T, -1)
    present, expected = ANSWERS["segments"] != 0, 0.0
    for prompt in (0, 2, 3):
        answers = [hidden[prompt, k][present[prompt, k]] for k in range(4) if present[prompt, k].any()]
        expected += COEFFICIENT * np.mean([(answer**2).mean() for answer in answers])
    assert float(plain.weight) == float(penalised.weight) == 3
    assert float(metrics["square"].sum) == pytest.approx(expected, rel=1e-5)
    assert float(penalised.sum - plain.sum) == pytest.approx(expected, rel=1e-4)


def test_a_model_without_auxiliary_losses_returns_none():
    assert jax.eval_shape(PLAIN.hidden, params(), ragged()).aux == {}
    assert dataclasses.asdict(MODEL) == dataclasses.asdict(PLAIN)
