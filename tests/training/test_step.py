"""The step: one division by the global weight, accumulation, skipped steps, and the same result however it is run.

The loss here is a small one of its own, so that each test compiles in a moment; tests/invariants runs real models.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.model.logit_head import LogitHead
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.training.step import make_eval_step, make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

T, D, V = 6, 5, 11


def loss_fn(params, batch, rng):
    hidden = batch["states"] * jnp.broadcast_to(params["scale"], batch["states"].shape)
    if rng is not None:
        hidden = jnp.where(jax.random.bernoulli(rng, 0.5, hidden.shape), hidden, 0.0)
    return cross_entropy(hidden, LogitHead(params["head"]), batch["targets"], batch["weights"], z_loss=0.01)


def undropped(params, batch, rng):
    return loss_fn(params, batch, None)


def make_params():
    rng = np.random.default_rng(0)
    return {"head": rng.normal(size=(V, D)).astype(np.float32), "scale": np.ones(D, np.float32)}


def make_batch(rows=8, seed=1):
    """Rows whose weights differ by orders of magnitude; in the first half of a row they are all 0."""
    rng = np.random.default_rng(seed)
    weights = np.repeat(10.0 ** rng.uniform(-3, 2, (rows, 1)), T, axis=1)
    weights[:, : T // 2] = 0.0
    return {
        "states": rng.normal(size=(rows, T, D)).astype(np.float32),
        "targets": rng.integers(0, V, (rows, T)).astype(np.int32),
        "weights": weights.astype(np.float32),
    }


def sgd_state():
    """A plain gradient step of rate 1: the gradient is what a step subtracts."""
    return optax.sgd(1.0), TrainState.create(make_params(), optax.sgd(1.0))


def gradient_of(step, state, batch):
    after, metrics = step(state, batch)
    return jax.tree.map(lambda old, new: old - np.asarray(new), state.params, after.params), metrics


def global_loss(params, batch):
    """In float64 and in one piece: sum and weight over all tokens, and the gradient of their quotient."""
    head, scale, states, weights = (
        np.asarray(x, np.float64) for x in (params["head"], params["scale"], batch["states"], batch["weights"])
    )
    logits = (states * scale) @ head.T
    log_z = np.log(np.exp(logits).sum(-1))
    wanted = np.eye(V)[batch["targets"]]
    loss = (weights * (log_z - (wanted * logits).sum(-1) + 0.01 * log_z**2)).sum()
    slope = np.exp(logits - log_z[..., None]) * (1 + 0.02 * log_z[..., None]) - wanted
    slope *= weights[..., None] / weights.sum()
    gradient = {
        "head": np.einsum("btv,btd->vd", slope, states * scale),
        "scale": ((slope @ head) * states).sum((0, 1)),
    }
    return loss, weights.sum(), gradient


def mean_of_means(params, parts):
    """What a step gives that divides each part by its own weight: the mistake that these tests are there to catch."""
    means = [global_loss(params, part)[2] for part in parts]
    return jax.tree.map(lambda *g: sum(g) / len(parts), *means)


def assert_close(found, wanted, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance * np.abs(b).max())


def assert_bitwise(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def distance(found, wanted):
    """The largest difference, in parts of the largest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("parts", range(2, 9))
def test_accumulation_is_the_large_batch_whatever_the_masks(parts):
    optimizer, state = sgd_state()
    batch = make_batch(rows=2 * parts)
    loss, weight, wanted = global_loss(state.params, batch)
    step = jax.jit(make_train_step(undropped, optimizer, microbatches=parts))
    found, metrics = gradient_of(step, state, batch)
    assert_close(found, wanted)
    np.testing.assert_allclose(metrics["loss"].sum, loss, rtol=2e-6)
    np.testing.assert_allclose(metrics["loss"].weight, weight, rtol=2e-6)
    cut = [{name: x[i::parts] for name, x in batch.items()} for i in range(parts)]
    assert distance(mean_of_means(state.params, cut), wanted) > 0.05


DEVICES = 4
MESH = Mesh(np.array(jax.devices()[:DEVICES]), ("devices",))


def runnable(kind, make):
    """The step that `make(axis_name)` makes, in one of the ways that a step can be run."""
    whole, rows = PartitionSpec(), PartitionSpec("devices")
    if kind == "eager":
        return make(None)
    if kind == "jit":
        return jax.jit(make(None))
    if kind == "jit on a mesh":
        return jax.jit(make(None), in_shardings=(NamedSharding(MESH, whole), NamedSharding(MESH, rows)))
    if kind == "pmap":
        step = jax.pmap(make("devices"), axis_name="devices", in_axes=(None, 0), devices=jax.devices()[:DEVICES])

        def mapped(state, batch):
            result = step(state, {name: x.reshape(DEVICES, -1, *x.shape[1:]) for name, x in batch.items()})
            for leaf in jax.tree.leaves(result):
                np.testing.assert_array_equal(leaf, np.repeat(np.asarray(leaf)[:1], DEVICES, axis=0))
            return jax.tree.map(lambda x: np.asarray(x)[0], result)  # the same on every device

        return mapped
    step, checked = make("devices"), kind == "shard_map"
    return jax.jit(jax.shard_map(step, mesh=MESH, in_specs=(whole, rows), out_specs=(whole, whole), check_vma=checked))


KINDS = ("eager", "jit", "jit on a mesh", "shard_map", "shard_map, unchecked", "pmap")


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_normalised_once_over_all_devices_and_microbatches(kind, microbatches):
    optimizer, state = sgd_state()
    batch = make_batch()
    make = functools.partial(make_train_step, undropped, optimizer, microbatches=microbatches)
    step = runnable(kind, lambda axis: make(axis_name=axis))
    found, metrics = gradient_of(step, state, batch)
    loss, weight, wanted = global_loss(state.params, batch)
    assert_close(found, wanted)
    np.testing.assert_allclose(metrics["loss"].sum, loss, rtol=2e-6)
    np.testing.assert_allclose(metrics["loss"].weight, weight, rtol=2e-6)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(wanted)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    shares = [{name: x[2 * i : 2 * i + 2] for name, x in batch.items()} for i in range(DEVICES)]
    assert distance(mean_of_means(state.params, shares), wanted) > 0.05


def test_a_shard_map_over_two_axes_sums_over_both():
    optimizer, state = sgd_state()
    batch, axes = make_batch(), ("slices", "devices")
    mesh = Mesh(MESH.devices.reshape(2, 2), axes)
    step = make_train_step(undropped, optimizer, axis_name=axes)
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(axes)), "out_specs": (PartitionSpec(), PartitionSpec())}
    found, _ = gradient_of(jax.jit(jax.shard_map(step, mesh=mesh, **specs)), state, batch)
    assert_close(found, global_loss(state.params, batch)[2])


@functools.cache
def after_three_adam_steps(kind):
    optimizer = optax.adamw(0.05, eps=1e-3)
    make = functools.partial(make_train_step, undropped, optimizer, microbatches=2)
    step, state = runnable(kind, lambda axis: make(axis_name=axis)), TrainState.create(make_params(), optimizer)
    for number in range(3):
        state, _ = step(state, make_batch(seed=number))
    return state


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jit"])
def test_three_adam_steps_are_the_same_however_the_step_is_run(kind):
    found, wanted = after_three_adam_steps(kind), after_three_adam_steps("jit")
    assert int(found.step) == 3
    assert_close(found.params, wanted.params, 1e-5)


def test_a_step_depends_on_state_and_batch_alone_and_leaves_both_as_they_were():
    optimizer = optax.adam(0.1)
    state, batch = TrainState.create(make_params(), optimizer), make_batch()
    before = jax.tree.map(np.array, (state, batch))
    step = jax.jit(make_train_step(loss_fn, optimizer, microbatches=2, seed=3))
    first, second = step(state, batch), step(state, batch)
    assert_bitwise(first, second)
    assert_bitwise((state, batch), before)
    again = jax.jit(make_train_step(loss_fn, optimizer, microbatches=2, seed=3))
    assert_bitwise(again(state, batch), first)


def losses(step, state, batch):
    return float(step(state, batch)[1]["loss"].sum)


def test_dropout_is_drawn_by_seed_and_step_and_by_nothing_else():
    optimizer, state = sgd_state()
    batch = make_batch()
    step = jax.jit(make_train_step(loss_fn, optimizer, seed=3))
    key = jax.random.fold_in(jax.random.key(3), 0)
    np.testing.assert_allclose(losses(step, state, batch), loss_fn(state.params, batch, key)[0].sum, rtol=1e-6)
    later = TrainState(state.step + 1, state.params, state.opt_state)
    other_seed = jax.jit(make_train_step(loss_fn, optimizer, seed=4))
    drawn = [losses(step, state, batch), losses(step, later, batch), losses(other_seed, state, batch)]
    assert len(set(drawn)) == 3


def test_every_microbatch_and_every_device_draws_dropout_of_its_own():
    """Rows are all the same here: with one mask for all parts, each would have the same loss."""
    optimizer, state = sgd_state()
    same = {name: np.repeat(x[:1], 4, axis=0) for name, x in make_batch().items()}

    def parts(params, batch, rng):
        loss, _ = loss_fn(params, batch, rng)
        return loss, {"square": Weighted(loss.sum**2, loss.weight)}

    makers = {
        "jit": lambda axis: make_train_step(parts, optimizer, microbatches=4, axis_name=axis),
        "shard_map": lambda axis: make_train_step(parts, optimizer, axis_name=axis),
        "pmap": lambda axis: make_train_step(parts, optimizer, axis_name=axis),
    }
    for kind, make in makers.items():
        _, metrics = runnable(kind, make)(state, same)
        mean, mean_square = float(metrics["loss"].sum) / 4, float(metrics["square"].sum) / 4
        assert mean_square - mean**2 > 1e-3 * mean_square, kind


def spoiled(batch, value):
    states = batch["states"].copy()
    states[0, -1, 0] = value
    return batch | {"states": states}


def spiked(params, batch, rng):
    """A finite loss with an infinite gradient where `spike` is 0: the slope of a square root there."""
    loss, metrics = undropped(params, batch, rng)
    return Weighted(loss.sum + jnp.sqrt(batch["spike"].sum() * params["scale"].sum()), loss.weight), metrics


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count_and_later_ones_go_on(value, microbatches):
    optimizer = optax.adam(0.1)
    start = TrainState.create(make_params(), optimizer)
    step = jax.jit(make_train_step(undropped, optimizer, microbatches=microbatches))
    good, bad = make_batch(seed=1), spoiled(make_batch(seed=2), value)
    first, metrics = step(start, good)
    assert float(metrics["skipped"]) == 0
    second, metrics = step(first, bad)
    assert float(metrics["skipped"]) == 1
    assert int(second.step) == 2
    assert_bitwise((second.params, second.opt_state), (first.params, first.opt_state))
    third, metrics = step(second, good)
    assert float(metrics["skipped"]) == 0
    wanted, _ = step(first, good)
    assert_bitwise((third.params, third.opt_state), (wanted.params, wanted.opt_state))
    assert distance(third.params, first.params) > 0.01


def test_a_finite_loss_with_an_infinite_gradient_is_skipped_too():
    optimizer, state = sgd_state()
    step = jax.jit(make_train_step(spiked, optimizer))
    after, metrics = step(state, make_batch() | {"spike": np.zeros(8, np.float32)})
    assert np.isfinite(metrics["loss"].sum)
    assert float(metrics["skipped"]) == 1
    assert_bitwise(after.params, state.params)


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_one_devices_bad_rows_make_all_devices_skip(kind):
    optimizer, state = sgd_state()
    make = lambda axis: make_train_step(undropped, optimizer, axis_name=axis)  # noqa: E731
    after, metrics = runnable(kind, make)(state, spoiled(make_batch(), jnp.nan))
    assert float(metrics["skipped"]) == 1
    assert_bitwise(after.params, state.params)


def test_a_batch_without_weight_gives_no_gradient_and_no_nan():
    optimizer, state = sgd_state()
    empty = make_batch() | {"weights": np.zeros((8, T), np.float32)}
    after, metrics = jax.jit(make_train_step(undropped, optimizer, microbatches=2))(state, empty)
    assert_bitwise(after.params, state.params)
    assert (float(metrics["loss"].mean()), float(metrics["skipped"])) == (0, 0)


def test_the_optimizer_is_told_the_step_and_the_rate_is_reported():
    told = []

    def update(grads, state, params=None, *, step, **_):
        told.append(step)
        return jax.tree.map(jnp.zeros_like, grads), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    state = TrainState(jnp.int32(7), make_params(), optax.EmptyState())
    step = make_train_step(undropped, optimizer, schedule=lambda step: 0.5 * step)
    after, metrics = step(state, make_batch())
    assert [int(step) for step in told] == [7]
    assert (int(after.step), float(metrics["learning_rate"])) == (8, 3.5)


def test_evaluation_over_unequal_batches_is_the_mean_over_all_their_tokens_without_dropout():
    params, step = make_params(), jax.jit(make_eval_step(loss_fn))
    batches = [make_batch(rows, seed) for rows, seed in ((4, 1), (4, 2), (8, 3))]
    found = [step(params, batch) for batch in batches]
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    loss, weight, _ = global_loss(params, whole)
    total = sum((metrics["loss"] for metrics in found[1:]), found[0]["loss"])
    np.testing.assert_allclose(total.mean(), loss / weight, rtol=2e-6)
    assert set(found[0]) == {"loss", "cross_entropy", "accuracy"}
    means = np.mean([float(metrics["loss"].mean()) for metrics in found])
    assert abs(means - loss / weight) > 0.01
